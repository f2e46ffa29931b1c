"""The sum of a launch is right in every order of its memory accesses (tools/memory_order.py)."""

from __future__ import annotations

import pytest

from tools import memory_order

SOURCE = memory_order.SOURCE.read_text()

# What a missing statement of reduce_and_store() leads to.
PLANTS = {
    "fence between partial sum and ticket": ("    __threadfence();\n", "a partial sum is read before it is written"),
    "fence between ticket and partial sums": (
        "if (shared.is_last) __threadfence();",
        "a partial sum is read before it is written",
    ),
    "barrier before the last block knows": (
        "  __syncthreads();\n  if (!shared.is_last) return;",
        "is_last is read before it is written",
    ),
    "store of the partial sum": (
        "workspace.partials[static_cast<int64_t>(i) * blocks + blockIdx.x] = total;",
        "a partial sum is read before it is written",
    ),
}


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_every_order_is_right(blocks):
    machine = memory_order.Machine(memory_order.protocol(SOURCE), blocks)
    assert machine.violations() == set()
    assert machine.states > 10**blocks


@pytest.mark.parametrize("plant", PLANTS)
def test_a_missing_statement_is_found(plant):
    statement, violation = PLANTS[plant]
    assert SOURCE.count(statement) == 1
    without = SOURCE.replace(statement, "  if (!shared.is_last) return;" if "return" in statement else "")
    assert violation in memory_order.Machine(memory_order.protocol(without), blocks=2).violations()


def test_a_ticket_that_was_not_reset_is_found():
    found = memory_order.Machine(memory_order.protocol(SOURCE), blocks=2, ticket=1).violations()
    assert "the ticket is not 0 after the launch" in found


def test_a_barrier_that_one_thread_misses_is_found():
    """Only the first thread returns before it."""
    steps = memory_order.protocol(SOURCE)
    steps.insert(steps.index("barrier"), "return unless last")
    found = memory_order.Machine(steps, blocks=2).violations()
    assert {"is_last is read before it is written", "threads wait at a barrier for ever"} & found


def test_other_synchronisation_is_refused():
    with pytest.raises(ValueError, match="STATEMENTS"):
        memory_order.protocol(SOURCE.replace("__syncthreads();\n  if (!shared", "barrier.sync();\n  if (!shared"))
