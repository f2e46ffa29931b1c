"""Checks the order of memory accesses in the sum of a launch exhaustively: every interleaving of the threads and every value
that a read may return on a GPU.

    python -m tools.memory_order

``protocol()`` reads the accesses of ``reduce_and_store()`` from its source, so the model can't miss a change of the code.
``violations()`` runs them on a machine with weak memory: a store becomes visible to another thread only through fences, atomics
and barriers. The machine keeps a view per thread, the newest store to each location that the thread is bound to see (Kang et al.,
"A Promising Semantics for Relaxed-Memory Concurrency", POPL 2017, without promises, which stores that depend on a ticket
don't need). The PTX memory model allows no more: a fence and an atomic form a release or an acquire pattern, which a chain of
atomics extends, and a barrier orders the threads of a block.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "outputs.cuh"

# The statements of reduce_and_store() that access shared or global memory, or order accesses.
STATEMENTS = {
    "store partial": r"workspace\.partials\[[^;]*\] = total;",
    "fence": r"(?<!\) )__threadfence\(\);",
    "take ticket": r"shared\.is_last = atomicInc\(workspace\.ticket, blocks - 1\) == blocks - 1;",
    "fence if last": r"if \(shared\.is_last\) __threadfence\(\);",
    "barrier": r"(?<!;)__syncthreads\(\);",
    "return unless last": r"if \(!shared\.is_last\) return;",
    "load partials": r"__ldcg\(&workspace\.partials",
}
FIRST_THREAD_ONLY = {"store partial", "fence", "take ticket", "fence if last"}


def protocol(source: str) -> list[str]:
    """The accesses of reduce_and_store() in program order, as keys of STATEMENTS."""
    body = source[source.index("void reduce_and_store(") :]
    body = body[: body.index("\n}\n")]
    body = re.sub(r"//.*", "", body)
    found = [(match.start(), name) for name, pattern in STATEMENTS.items() for match in re.finditer(pattern, body)]
    known = sum(name in ("fence", "fence if last", "barrier") for _, name in found)
    if known != len(re.findall(r"__threadfence\(|__syncthreads\(|\bbarrier", body)):
        raise ValueError(
            f"{SOURCE.name} orders memory in a way that memory_order.py does not know: add it to STATEMENTS."
        )
    return [name for _, name in sorted(found)]


# ---------------------------------------------------------------- the machine

View = tuple[int, ...]  # by location: the index of the newest store that is known
UNWRITTEN = None


class Thread(NamedTuple):
    """A thread between two accesses."""

    at: int  # index in the protocol; its length at the end
    seen: View  # what the thread is bound to see
    pending: View  # what its next fence adds: the views of the stores that its atomics read
    released: View  # what it had seen at its last fence: other threads get it with the stores since then
    is_last: bool  # the first thread's own copy


class State(NamedTuple):
    """The threads in order of block and thread, and the stores to each location: (value, view) pairs."""

    threads: tuple[Thread, ...]
    memory: tuple[tuple[tuple[object, View], ...], ...]


def join(a: View, b: View) -> View:
    """The newer of two views, by location."""
    return tuple(map(max, a, b))


class Machine:
    """``blocks`` blocks of two threads. Locations: the ticket, a partial sum per block, is_last per block."""

    def __init__(self, steps: list[str], blocks: int, ticket: int = 0):
        self.steps, self.blocks = steps, blocks
        nothing: View = (0,) * (1 + 2 * blocks)
        start = Thread(0, nothing, nothing, nothing, False)
        values = [ticket] + [UNWRITTEN] * (2 * blocks)
        self.start = State((start,) * (2 * blocks), tuple(((value, nothing),) for value in values))

    def violations(self) -> set[str]:
        """What goes wrong in some execution."""
        found: set[str] = set()
        known, open_states = {self.start}, [self.start]
        while open_states:
            state = open_states.pop()
            following = [after for i in range(len(state.threads)) for after in self._step(state, i, found)]
            if not following:
                self._check_end(state, found)
            for after in following:
                if after not in known:
                    known.add(after)
                    open_states.append(after)
        self.states = len(known)
        return found

    def _check_end(self, state: State, found: set[str]) -> None:
        if any(thread.at < len(self.steps) for thread in state.threads):
            found.add("threads wait at a barrier for ever")
        if state.memory[0][-1][0] != 0:
            found.add("the ticket is not 0 after the launch")
        if sum(stores[-1][0] is True for stores in state.memory[1 + self.blocks :]) != 1:
            found.add("not exactly one block is the last")

    def _step(self, state: State, index: int, found: set[str]) -> list[State]:
        """All states that the next access of a thread may lead to."""
        block, is_first = index // 2, index % 2 == 0
        thread = state.threads[index]
        if thread.at == len(self.steps):
            return []
        step = self.steps[thread.at]
        after = thread._replace(at=thread.at + 1)
        if step in FIRST_THREAD_ONLY and not is_first:
            return [self._with(state, index, after)]
        partial, flag = 1 + block, 1 + self.blocks + block

        if step == "store partial":
            return [self._store(state, index, after, partial, block)]
        if step == "fence" or (step == "fence if last" and thread.is_last):
            seen = join(thread.seen, thread.pending)
            return [self._with(state, index, after._replace(seen=seen, released=seen))]
        if step == "fence if last":
            return [self._with(state, index, after)]
        if step == "take ticket":
            # An atomic reads the newest store. Its own store passes on the view of the one it read.
            value, view = state.memory[0][-1]
            after = after._replace(pending=join(thread.pending, view), is_last=value == self.blocks - 1)
            state = self._store(state, index, after, 0, 0 if after.is_last else value + 1, view)
            return [self._store(state, index, state.threads[index], flag, after.is_last)]
        if step == "barrier":
            other = state.threads[index ^ 1]
            if other.at != thread.at:
                return []  # it waits
            seen = join(thread.seen, other.seen)
            threads = list(state.threads)
            for i in (index, index ^ 1):
                threads[i] = threads[i]._replace(at=thread.at + 1, seen=seen)
            return [state._replace(threads=tuple(threads))]
        if step == "return unless last":
            following = []
            for value, _ in state.memory[flag][thread.seen[flag] :]:
                if value is UNWRITTEN:
                    found.add("is_last is read before it is written")
                else:
                    following.append(self._with(state, index, after if value else after._replace(at=len(self.steps))))
            return following
        assert step == "load partials"
        # Even blocks are the first thread's, odd ones the second's. A read may return any store from the newest one known.
        for other in range(index % 2, self.blocks, 2):
            if any(value is UNWRITTEN for value, _ in state.memory[1 + other][thread.seen[1 + other] :]):
                found.add("a partial sum is read before it is written")
        return [self._with(state, index, after)]

    def _with(self, state: State, index: int, thread: Thread) -> State:
        threads = list(state.threads)
        threads[index] = thread
        return state._replace(threads=tuple(threads))

    def _store(self, state: State, index: int, thread: Thread, place: int, value: object, view: View | None = None):
        memory = list(state.memory)
        stores = memory[place]
        released = thread.released if view is None else join(thread.released, view)
        memory[place] = (*stores, (value, released))
        seen = list(thread.seen)
        seen[place] = len(stores)
        return self._with(state, index, thread._replace(seen=tuple(seen)))._replace(memory=tuple(memory))


def main() -> None:
    steps = protocol(SOURCE.read_text())
    print(" -> ".join(steps))
    for blocks in (1, 2, 3):
        machine = Machine(steps, blocks)
        found = machine.violations()
        print(f"{blocks} blocks of 2 threads: {machine.states} states, {'; '.join(sorted(found)) or 'no violation'}")


if __name__ == "__main__":
    main()
