"""Replies of many steps: each conversation keeps its cache between them, and only what is new goes through the model.

    responder = Responder(model, max_new_tokens=4096, temperature=1.0, top_p=0.95, stop_ids=processor.stop_ids)
    [reply] = responder.reply_all([conversation])

Here one conversation is answered after the other; `optimized.responder.Responder` is called the same way and answers
all of them as one batch.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .conversation import Conversation
from .generation import Generated, room
from .prompt import Prompt
from .replies import Reply
from .request import check_max_new_tokens
from .sampling import Sampler

# T new tokens   R conversations   V vocab_size


class Responder:
    """Samples the replies of conversations. max_new_tokens: for one reply.

    `submit` conversations that are open for a reply, `collect` replies as they get done, `dismiss` a conversation that
    is over. Raises UsageError for settings out of range.
    """

    def __init__(self, model: torch.nn.Module, *, max_new_tokens: int, temperature: float, top_p: float,
                 stop_ids: Iterable[int]) -> None:
        check_max_new_tokens(max_new_tokens)
        self.model, self.max_new_tokens, self.stop_ids = model, max_new_tokens, frozenset(stop_ids)
        self.device = next(model.parameters()).device
        self.sampler = Sampler(temperature, top_p, [])
        self.sampler_rows: dict[Conversation, int] = {}  # whose draws are whose
        self.waiting: deque[Conversation] = deque()
        self.caches: dict[Conversation, object] = {}

    def submit(self, conversation: Conversation) -> None:
        """Ask for the next reply."""
        if conversation not in self.sampler_rows:
            self.sampler_rows[conversation] = self.sampler.add(conversation.seed)
        self.waiting.append(conversation)

    def collect(self) -> list[tuple[Conversation, Generated]]:
        """Go on until at least one reply is done, if any was asked for. Raises ContextError if there is no room."""
        if not self.waiting:
            return []
        conversation = self.waiting.popleft()
        return [(conversation, self._respond(conversation))]

    def dismiss(self, conversation: Conversation) -> None:
        """Forget all about a conversation, also one that still waits for a reply."""
        self.caches.pop(conversation, None)
        self.sampler_rows.pop(conversation, None)
        if conversation in self.waiting:
            self.waiting.remove(conversation)

    def reply_all(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """The next reply of each, added to it."""
        for conversation in conversations:
            self.submit(conversation)
        replies: dict[Conversation, Reply] = {}
        while len(replies) < len(conversations):
            replies |= {conversation: conversation.add_reply(generated) for conversation, generated in self.collect()}
        return [replies[conversation] for conversation in conversations]

    def limit(self, conversation: Conversation) -> int:
        """How many tokens the next reply may have."""
        return min(self.max_new_tokens, room(len(conversation.ids), self.model.config.text.max_position_embeddings))

    def choose(self, logits: Tensor, conversations: Sequence[Conversation]) -> list[int]:
        """The next token of each. logits (R, V)."""
        for row, conversation in zip(logits, conversations, strict=True):
            for token in conversation.forbidden_ids:
                row[token] = -torch.inf
        return self.sampler.sample(logits, [self.sampler_rows[conversation] for conversation in conversations])

    @torch.inference_mode()
    def _respond(self, conversation: Conversation) -> Generated:
        """One reply, through the conversation's cache."""
        limit, generated = self.limit(conversation), Generated()
        if conversation not in self.caches:
            conversation.start_over()
            self.caches[conversation] = self.model.new_cache(1)
        new, cache = conversation.take_new(), self.caches[conversation]
        cache.keep_tokens(len(conversation.ids) - len(new.input_ids))
        while True:
            [token] = self.choose(self._forward(new, cache), [conversation])
            if token in self.stop_ids:
                generated.finish_reason = "stop"
                return generated
            generated.ids.append(token)
            if len(generated.ids) == limit:
                return generated
            new = Prompt([token], None, None, [])

    def _forward(self, new: Prompt, cache: object) -> Tensor:
        """Run new tokens; logits (1, V) of the one after them."""
        input_ids = torch.tensor([new.input_ids], device=self.device)                            # (1, T)
        media = {} if new.grid_thws is None else {
            "pixel_values": torch.from_numpy(new.pixel_values).to(self.device),
            "grid_thws": torch.from_numpy(new.grid_thws).to(self.device)}
        return self.model(input_ids, cache=cache, last_only=True, **media)[:, -1]
