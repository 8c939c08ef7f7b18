"""CouchDB as requests and answers, shared by the sync and the async hook. Nothing here does I/O."""
