"""An interactive conversation of many turns at a terminal."""

from collections.abc import Callable
from dataclasses import replace

from .errors import KimiError
from .replies import Reply
from .request import Request
from .terminal import note

HELP = ("/image FILE, /video FILE, /pdf FILE attach to your next message; /instant and /thinking choose the mode; "
        "/reset forgets the conversation; /quit or Ctrl-D leaves; Ctrl-C stops an answer")


def chat(respond: Callable[[Request], Reply], request: Request, media: list[dict]) -> None:
    """Talk until /quit or Ctrl-D. `request` holds the settings and perhaps a system message, `media` the first parts.

    respond(request) answers one request and prints the reply. A turn that fails or is stopped is
    forgotten, so that the next one starts from a conversation that the model could have had.
    """
    note(HELP)
    session = _Session(respond, request, media)
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            note("")
            continue
        except EOFError:
            note("")
            return
        if line == "/quit":
            return
        if line.startswith("/"):
            session.command(*line[1:].split(maxsplit=1))
        elif line:
            session.turn(line)


class _Session:
    """The conversation so far and the media waiting for the next message."""

    def __init__(self, respond: Callable[[Request], Reply], request: Request, media: list[dict]) -> None:
        self.respond = respond
        self.opening = request.messages
        self.request = request
        self.media = media

    def command(self, name: str = "", argument: str = "") -> None:
        if name in ("image", "video", "pdf") and argument:
            self.media.append(media_part(name, argument))
        elif name in ("instant", "thinking"):
            self.request = replace(self.request, thinking=name == "thinking")
            note(f"{name} mode")
        elif name == "reset":
            self.request, self.media = replace(self.request, messages=self.opening), []
            note("a new conversation")
        else:
            note(HELP)

    def turn(self, text: str) -> None:
        asked = [*self.request.messages, user_message(text, self.media)]
        self.media = []
        try:
            reply = self.respond(replace(self.request, messages=asked))
        except KeyboardInterrupt:
            note("\nstopped; this question is forgotten")
            return
        except KimiError as error:
            note(f"error: {error}")
            return
        if reply.content.strip() or reply.tool_calls:
            self.request = replace(self.request, messages=[*asked, reply.to_message()])
        else:
            note("no answer; this question is forgotten")


def media_part(kind: str, file: str) -> dict:
    """A content part for --image, --video, --pdf and their chat commands."""
    if kind == "video":
        from .media import video_argument

        return {"type": "video_url", "video_url": video_argument(file)}
    return {"type": f"{kind}_url", f"{kind}_url": file}


def user_message(text: str, media: list[dict]) -> dict:
    """Media stand before the text."""
    return {"role": "user", "content": [*media, {"type": "text", "text": text}] if media else text}
