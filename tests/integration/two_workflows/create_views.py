"""``create_views.py workflows``: a design document for each workflow."""

from connect import connect

CONDITIONS = {
    "todo": "doc.lock == 0 && doc.done == 0",
    "locked": "doc.lock > 0 && doc.done == 0",
    "done": "doc.lock > 0 && doc.done > 0 && parseInt(doc.exit_code) == 0",
    "error": "doc.lock > 0 && doc.done > 0 && parseInt(doc.exit_code) != 0",
}

for workflow in ("ddcal", "imaging"):
    maps = {}
    for name, condition in CONDITIONS.items():
        both = f'{condition} && doc.workflow == "{workflow}"'
        maps[name] = {
            "map": f'function(doc) {{ if(doc.type == "token") {{ if({both}) {{ emit(doc._id, doc._id); }} }} }}'
        }
    connect().db.save({"_id": f"_design/{workflow}", "language": "javascript", "views": maps})
