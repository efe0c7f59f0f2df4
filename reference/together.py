"""Tasks that need many replies run together, whatever each of them does in between.

A task is a generator. It yields a conversation and is sent the reply's ids, or it yields `Together(tasks)` and is sent
their results; what it returns is its own result. While it waits, the others go on.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .conversation import Conversation
from .responder import Responder


@dataclass(frozen=True)
class Together:
    """Tasks to be run side by side, at most `limit` of them at a time."""

    tasks: Sequence["Task"]
    limit: int


Task = Generator[Conversation | Together, Any, Any]


@dataclass
class _Group:
    """A `Together` under way. parent: the run that waits for the results."""

    wish: Together
    parent: "_Run | None"
    results: list[Any]
    num_begun: int = 0
    num_done: int = 0


@dataclass
class _Run:
    """A task under way, its place in its group and the conversations it has led."""

    task: Task
    group: _Group
    index: int
    conversations: set[Conversation] = field(default_factory=set)


def run_together(responder: Responder, tasks: Sequence[Task], limit: int | None = None) -> list[Any]:
    """Run tasks to their ends, at most `limit` at a time; their results, in order."""
    return _Runner(responder).run(Together(tasks, limit or len(tasks)))


class _Runner:
    """What is under way: runs that can go on, with what they are sent, and conversations that wait for a reply."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.ready: deque[tuple[_Run, Any]] = deque()
        self.owners: dict[Conversation, _Run] = {}
        self.conversations: set[Conversation] = set()  # of all runs that are not over

    def run(self, wish: Together) -> list[Any]:
        whole = _Group(wish, None, [None] * len(wish.tasks))
        self.begin(whole)
        try:
            while self.ready or self.owners:
                while self.ready:
                    self.advance(*self.ready.popleft())
                for conversation, generated in self.responder.collect():
                    self.ready.append((self.owners.pop(conversation), generated))
        finally:  # stopped by hand, perhaps: the responder can be used again
            self.forget(self.conversations)
        return whole.results

    def begin(self, group: _Group) -> None:
        """Start as many tasks of a group as may run now."""
        while group.num_begun < len(group.results) and group.num_begun - group.num_done < group.wish.limit:
            self.ready.append((_Run(group.wish.tasks[group.num_begun], group, group.num_begun), None))
            group.num_begun += 1

    def advance(self, run: _Run, sent: Any) -> None:
        """Let a task go on to its next wish, or to its end."""
        try:
            wish = run.task.send(sent)
        except StopIteration as end:
            self.finish(run, end.value)
            return
        if isinstance(wish, Conversation):
            self.owners[wish] = run
            run.conversations.add(wish)
            self.conversations.add(wish)
            self.responder.submit(wish)
        elif wish.tasks:
            self.begin(_Group(wish, run, [None] * len(wish.tasks)))
        else:
            self.ready.append((run, []))

    def finish(self, run: _Run, result: Any) -> None:
        """Note the result of a task; its group goes on with the next, or its parent with all results."""
        self.forget(run.conversations)
        group = run.group
        group.results[run.index] = result
        group.num_done += 1
        if group.num_done < len(group.results):
            self.begin(group)
        elif group.parent:
            self.ready.append((group.parent, group.results))

    def forget(self, conversations: set[Conversation]) -> None:
        for conversation in conversations:
            self.responder.dismiss(conversation)
        self.conversations = self.conversations - conversations
