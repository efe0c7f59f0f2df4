"""A swarm: an agent that may define further agents and hand them tasks, all of one turn's at the same time.

    orchestrator = Orchestrator(processor, messages, tools, run_tool)
    [result] = run_agents(responder, [orchestrator])
    result.critical_steps, result.messages

Two tools are all that the orchestrator has beside the ordinary ones; whether, when and how it splits its work is up to
the model. A subagent sees its role and its task and nothing else, has the ordinary tools, and hands back its last
message: the orchestrator's context holds results, not the ways to them.

Source: Kimi K2.5 technical report, arXiv 2602.02276, section 3 and appendix E.8.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from .agent import MAX_STEPS, Agent, Content, Result, Stage, ToolRunner, read_arguments, tool_names
from .conversation import Conversation
from .errors import KimiError, UsageError
from .prompt import Processor
from .replies import ToolCall
from .together import Together

MAX_AGENTS = 16

CREATE, ASSIGN = "create_subagent", "assign_task"


def _declaration(name: str, description: str, /, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


SWARM_TOOLS = [
    _declaration(CREATE, "Define a kind of agent that tasks can be assigned to. It does not run anything yet.",
                 name="What to call it; each name can be used once.",
                 system_prompt="What it is, what it can do and what it must not do. This and its task is all it sees."),
    _declaration(ASSIGN, "Start a fresh run of an agent and get its final message. Tasks assigned in one turn run at "
                         "the same time.",
                 agent="The name of an agent that was created.",
                 prompt="The whole task, in words that need no other context."),
]


@dataclass(frozen=True)
class SwarmResult(Result):
    """What the whole swarm did. `num_new_tokens` counts the subagents', too. `subagents`: one result per run."""

    num_created: int
    num_assigned: int
    subagents: list[Result]

    @property
    def finish_rate(self) -> float | None:
        """Share of the assigned tasks that an agent finished; None if none was assigned."""
        num_finished = sum(result.finish_reason == "stop" for result in self.subagents)
        return num_finished / self.num_assigned if self.num_assigned else None

    def report(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {"finish_reason": self.finish_reason, "turns": self.num_turns, "critical_steps": self.critical_steps,
                "total_steps": self.total_steps, "agents_created": self.num_created,
                "tasks_assigned": self.num_assigned, "finish_rate": self.finish_rate,
                "new_tokens": self.num_new_tokens,
                "stages": [{"s_main": stage.num_main_steps, "max_s_sub": max(stage.num_sub_steps, default=0)}
                           for stage in self.stages]}


class Orchestrator(Agent):
    """An agent with subagents. `tools` are the ordinary ones, for it and for them; run_tool runs them for all.

    max_sub_steps: for each run of a subagent. max_agents: how many of those run at a time.
    """

    def __init__(self, processor: Processor, messages: list[dict[str, Any]], tools: list[Any] | None,
                 run_tool: ToolRunner, *, thinking: bool = True, max_steps: int = MAX_STEPS,
                 max_sub_steps: int = MAX_STEPS, max_agents: int = MAX_AGENTS, seed: int = 0) -> None:
        if taken := {CREATE, ASSIGN} & set(tool_names(tools)):
            raise UsageError(f"tools declares {min(taken)}, which is the swarm's own. Give that tool another name.")
        if max_agents < 1:
            raise UsageError(f"max_agents is {max_agents}; expected at least 1. Leave it out for the default.")
        conversation = Conversation(processor, messages, [*(tools or []), *SWARM_TOOLS], thinking, seed)
        super().__init__(conversation, run_tool, max_steps=max_steps)
        self.tools, self.max_sub_steps, self.max_agents = tools, max_sub_steps, max_agents
        self.system_prompts: dict[str, str] = {}  # of the agents created
        self.subagents: list[Result] = []
        self.num_assigned = 0

    def act(self, calls: list[ToolCall]) -> Generator[Any, Any, list[Content]]:
        """One stage: agents are created first, then ordinary tools run, then all tasks at once."""
        before = self.num_calls
        contents = {i: self._create(call) for i, call in enumerate(calls) if call.name == CREATE}
        contents |= {i: self.call(call) for i, call in enumerate(calls) if call.name not in (CREATE, ASSIGN)}
        num_direct = self.num_calls - before
        if not num_direct:  # a turn that only creates and assigns is a step
            self.steps_left -= 1
        agents = {i: self._assign(call) for i, call in enumerate(calls) if call.name == ASSIGN}
        contents |= {i: agent for i, agent in agents.items() if isinstance(agent, str)}
        tasks = {i: agent.run() for i, agent in agents.items() if isinstance(agent, Agent)}
        results = yield Together(list(tasks.values()), self.max_agents)
        contents |= {i: last_message(result) for i, result in zip(tasks, results, strict=True)}
        self.subagents += results
        self.stages.append(Stage(max(num_direct, 1), [max(result.num_calls, 1) for result in results]))
        return [contents[i] for i in range(len(calls))]

    def _create(self, call: ToolCall) -> str:
        try:
            name, system_prompt = read_texts(call, "name", "system_prompt")
        except ValueError as error:
            return f"error: {error}"
        if name in self.system_prompts:
            return f"error: there is an agent {name} already. Choose another name."
        self.system_prompts[name] = system_prompt
        return f"created {name}"

    def _assign(self, call: ToolCall) -> Agent | str:
        """The agent that is to run, or what is wrong."""
        self.num_assigned += 1
        try:
            name, prompt = read_texts(call, "agent", "prompt")
            if name not in self.system_prompts:
                known = ", ".join(self.system_prompts) or "none"
                return f"error: there is no agent {name}. The agents are: {known}. Create it first."
            messages = [{"role": "system", "content": self.system_prompts[name]}, {"role": "user", "content": prompt}]
            # Another seed for every run: two agents with one task need not make the same mistake.
            seed = self.conversation.seed + self.num_assigned
            conversation = Conversation(self.conversation.processor, messages, self.tools, self.conversation.thinking,
                                        seed)
        except (ValueError, KimiError) as error:
            return f"error: {error}"
        return Agent(conversation, self.run_tool, max_steps=self.max_sub_steps)

    def _result(self, finish_reason: str) -> SwarmResult:
        own = vars(super()._result(finish_reason))
        num_new_tokens = self.num_new_tokens + sum(result.num_new_tokens for result in self.subagents)
        return SwarmResult(**own | {"num_new_tokens": num_new_tokens}, num_created=len(self.system_prompts),
                           num_assigned=self.num_assigned, subagents=self.subagents)


def read_texts(call: ToolCall, *names: str) -> list[str]:
    """The arguments of one of the swarm's tools. Raises ValueError, to be read by the model."""
    arguments = read_arguments(call.arguments)
    for name in names:
        if not isinstance(arguments.get(name), str) or not arguments[name].strip():
            raise ValueError(f"{call.name} needs {' and '.join(names)}, both text that is not empty; {name} is not.")
    return [arguments[name] for name in names]


def last_message(result: Result) -> str:
    """What the orchestrator gets to read of a subagent's run."""
    if result.finish_reason == "stop":
        return result.answer
    return f"The agent did not finish ({result.finish_reason}). {result.answer or 'It left no message.'}"
