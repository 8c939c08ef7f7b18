"""What a user may do with a batch: first a plan that says what would happen, then the action."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request

from airflow_provider_picas.plugins.access import ActorDep
from airflow_provider_picas.plugins.models import ActionBody, ActionName, Done, Plan

router = APIRouter(tags=["actions"])


@router.post("/batch/actions/{action}/plan", operation_id="plan")
async def plan(actor: ActorDep, action: ActionName, body: ActionBody) -> Plan:
    """What the action would do, and to how many."""
    raise HTTPException(501, "Not there yet.")


@router.post("/batch/actions/{action}", operation_id="act")
async def act(actor: ActorDep, action: ActionName, body: ActionBody, request: Request) -> Done:
    """Do it, and write it into Airflow's audit log."""
    raise HTTPException(501, "Not there yet.")
