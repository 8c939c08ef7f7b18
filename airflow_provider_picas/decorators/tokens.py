"""``@task.picas_tokens``: a task that pushes the tokens that a function yields."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import (
    Context,
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.operators.tokens.source import Source, any_fields


class _PicasTokensDecoratedOperator(DecoratedOperator, PicasPushTokensOperator):
    """Pushes the values that a function yields or returns: mappings are fields of tokens, other values are inputs."""

    custom_operator_name = "@task.picas_tokens"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in PicasPushTokensOperator.template_fields if name not in ("inputs", "tokens")),
    )

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if given := sorted({"inputs", "tokens"} & set(kwargs)):
            raise TypeError(f"@task.picas_tokens does not take `{given[0]}`: it pushes what the function yields.")
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def _source(self, context: Context) -> Source:
        known: dict[str, Any] = {**context, **self.op_kwargs}
        wanted = determine_kwargs(self.python_callable, self.op_args, known)
        return Source(self.python_callable(*self.op_args, **wanted), any_fields)


def picas_tokens_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task from a function that yields tokens: mappings of their fields, or plain values for their ``input``.

    The function may also return a list of them, or the path of a file.

    :param python_callable: the function, if the decorator has no arguments.
    :param kwargs: those of ``PicasPushTokensOperator``, except ``inputs`` and ``tokens``.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_PicasTokensDecoratedOperator, **kwargs
    )
