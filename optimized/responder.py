"""Replies of many steps, as one batch: conversations join, decode together, wait for their tools and go on.

    responder = Responder(model, max_new_tokens=4096, temperature=1.0, top_p=0.95, stop_ids=processor.stop_ids)

Called like `reference.responder.Responder`. A conversation that waits keeps its row until another one needs it; then
its part of the cache is set aside and comes back with its next step, so that nothing is ever computed twice.
"""

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from reference import responder as plain
from reference.conversation import Conversation
from reference.generation import Generated

from .generation import MAX_ROWS, Batch

# R rows that run   V vocab_size


class Responder(plain.Responder):
    """At most max_rows conversations are answered at a time, the others wait for a free row.

    All rows of the cache have room for the longest: for few and very long conversations, take few rows.
    """

    def __init__(
        self, model: torch.nn.Module, *, max_new_tokens: int, temperature: float, top_p: float,
        stop_ids: Iterable[int], max_rows: int = MAX_ROWS,
    ) -> None:  # fmt: skip
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        super().__init__(model, stop_ids=stop_ids, **settings)
        self.batch = Batch(model, max_rows)
        self.running: dict[Conversation, Generated] = {}
        self.limits: dict[Conversation, int] = {}
        self.newest: dict[Conversation, int] = {}  # the last token of each that runs
        self.aside: dict[Conversation, list[Tensor]] = {}  # caches of conversations that lost their row

    @torch.inference_mode()
    def collect(self) -> list[tuple[Conversation, Generated]]:
        """Go on until at least one reply is done, if any was asked for. Raises ContextError if there is no room."""
        done: list[tuple[Conversation, Generated]] = []
        while not done and (self.waiting or self.running):
            self._admit(done)
            if self.running:
                self.batch.bring_forward(self.running)
                conversations = self.batch.keys[: len(self.running)]
                num_waiting = len(self.batch.keys) - len(conversations)
                newest = [self.newest[conversation] for conversation in conversations]
                logits = self.batch.step(newest, num_waiting)  # (R, V)
                tokens = self.choose(logits, conversations)
                for conversation, token in zip(conversations, tokens, strict=True):
                    self._accept(conversation, token, done)
        return done

    @torch.inference_mode()
    def dismiss(self, conversation: Conversation) -> None:
        """Forget all about a conversation, also one that still waits for a reply."""
        super().dismiss(conversation)
        for kept in (self.running, self.limits, self.newest, self.aside):
            kept.pop(conversation, None)
        if conversation in self.batch.keys:
            self.batch.leave(conversation)

    def _admit(self, done: list[tuple[Conversation, Generated]]) -> None:
        """Let every waiting conversation run that has a row or can get one."""
        still_waiting: deque[Conversation] = deque()
        while self.waiting:
            conversation = self.waiting.popleft()
            if conversation not in self.batch.keys and not self._make_room():
                still_waiting.append(conversation)
                continue
            self.limits[conversation], self.running[conversation] = self.limit(conversation), Generated()
            logits = self._read(conversation)  # (V)
            self._accept(conversation, self.choose(logits[None], [conversation])[0], done)
        self.waiting = still_waiting

    def _make_room(self) -> bool:
        """Whether a row is free, or could be made free of a conversation whose tools are at work."""
        if len(self.batch.keys) < self.batch.max_rows:
            return True
        idle = (key for key in self.batch.keys if key not in self.running and key not in self.waiting)
        conversation = next(idle, None)
        if conversation is not None:
            self.aside[conversation] = self.batch.set_aside(conversation)
        return conversation is not None

    def _read(self, conversation: Conversation) -> Tensor:
        """Run what is new; logits (V) of the first token of the reply."""
        if conversation in self.aside:
            self.batch.come_back(conversation, self.aside.pop(conversation))
        if conversation in self.batch.keys:
            return self.batch.feed(conversation, conversation.ids, conversation.take_new())
        conversation.start_over()
        return self.batch.join(conversation, conversation.take_new())

    def _accept(self, conversation: Conversation, token: int, done: list[tuple[Conversation, Generated]]) -> None:
        """Keep a sampled token, or end the reply."""
        generated = self.running[conversation]
        if token in self.stop_ids:
            generated.finish_reason = "stop"
        else:
            generated.ids.append(token)
            self.newest[conversation] = token
        if token in self.stop_ids or len(generated.ids) == self.limits[conversation]:
            done.append((conversation, self.running.pop(conversation)))
            del self.limits[conversation]
            self.newest.pop(conversation, None)
