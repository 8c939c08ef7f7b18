"""What a user may do with a batch: first a plan that says what would happen, then the action."""

from __future__ import annotations

from fastapi import APIRouter, Request

from airflow_provider_picas.plugins import actions
from airflow_provider_picas.plugins.access import ActorDep
from airflow_provider_picas.plugins.action import Action
from airflow_provider_picas.plugins.host import Host
from airflow_provider_picas.plugins.models import ActionBody, ActionName, Done, Plan

router = APIRouter(tags=["actions"])


@router.post("/batch/actions/{action}/plan", operation_id="plan")
async def plan(actor: ActorDep, action: ActionName, body: ActionBody, request: Request) -> Plan:
    """What the action would do, and to how many."""
    return await actions.plan(Action(action, actor, body, Host.of(request)))


@router.post("/batch/actions/{action}", operation_id="act")
async def act(actor: ActorDep, action: ActionName, body: ActionBody, request: Request) -> Done:
    """Do it, and write it into Airflow's audit log."""
    return await actions.act(Action(action, actor, body, Host.of(request)))
