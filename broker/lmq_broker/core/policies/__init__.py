"""The scheduling policies by name: add a file and its line here."""

from collections.abc import Callable

from lmq_broker.core.policies.base import Policy
from lmq_broker.core.policies.blfq import Blfq
from lmq_broker.core.policies.strict import Strict
from lmq_broker.core.settings import Settings

POLICIES: dict[str, Callable[[Settings], Policy]] = {
    "blfq": Blfq,
    "strict": Strict,
}
