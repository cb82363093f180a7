"""The markers that chat templates write around turns. Knows their texts; knows no messages.

A decoded text says nowhere which of its tokens were special: only the family whose markers it
begins with tells what may be an ending and what is the response's own text.
"""

import re
from dataclasses import dataclass
from functools import cached_property

SPECIAL = re.compile(r"<[|｜][^|｜<>]{1,64}[|｜]>|<bos>|</?s>|<eos>|<pad>|<end_of_turn>")
"what looks like a special token of some tokenizer"
NO_TEXT = re.compile(rf"\s*+(?:(?:{SPECIAL.pattern})\s*+)*+")
"special tokens and blanks alone: what may be before the first turn, and after a turn's end"
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True)
class Markers:
    """What the templates of one family write."""

    opening: re.Pattern[str]
    "how a turn begins, and its role"
    ending: str
    "how a turn ends"
    stops: tuple[str, ...] = ()
    "what else ends or pads a text of the family's tokenizers"
    assistant: str = "assistant"
    "what the family calls that role"
    preamble: re.Pattern[str] = _NEVER
    "what the template itself puts before a system message, or writes without one"

    def opens(self, text: str) -> bool:
        """Whether the text begins with a turn."""
        return self.opening.match(text.lstrip()) is not None

    def without_ending(self, text: str) -> str:
        """`text` up to the first of the family's endings that no text comes after.

        A turn is over there, so whatever tokens follow are padding. Runs of them are matched once
        and never given back: the time is linear in the text's length. A </s> that closes a <s> of
        the text's own, HTML's strikethrough, is no ending.
        """
        for end in self._end.finditer(text):
            if end.end() == len(text):
                return text[: end.start()] + self._closing(text, end)
        return text

    def _closing(self, text: str, end: re.Match[str]) -> str:
        """What of a text's last run of endings is its own."""
        before = text[: end.start()]
        if end[1] != "</s>" or before.count("<s>") <= before.count("</s>"):
            return ""
        return end[1] if self._end.search(text, end.end(1)) else end[0]

    @cached_property
    def _end(self) -> re.Pattern[str]:
        own = "|".join(map(re.escape, (self.ending, *self.stops)))
        return re.compile(f"({own}){NO_TEXT.pattern}")


CHATML = Markers(
    re.compile(r"<\|im_start\|>(\w+)\n"),
    "<|im_end|>",
    # the last three where a policy has these turns over Mistral's or Llama's tokenizer
    stops=("<|endoftext|>", "</s>", "<|eot_id|>", "<|end_of_text|>"),
)
LLAMA_3 = Markers(
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"),
    "<|eot_id|>",
    stops=("<|eom_id|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    preamble=re.compile(  # since 3.1; "Environment" and "Tools" where the template was given tools
        r"(?:Environment: ipython\n(?:Tools: .*\n\n)?)?"
        r"Cutting Knowledge Date: .*\nToday Date: .*\n\n"
    ),
)
GEMMA = Markers(
    re.compile(r"<start_of_turn>(\w+)\n"),
    "<end_of_turn>",
    stops=("<eos>", "<pad>"),
    assistant="model",
)
FAMILIES = (CHATML, LLAMA_3, GEMMA)
UNKNOWN = Markers(
    _NEVER,
    "</s>",  # Llama 2, Mistral and many others
    stops=(
        *(ending for markers in FAMILIES for ending in (markers.ending, *markers.stops)),
        "<｜end▁of▁sentence｜>",  # DeepSeek
        "<|end|>",  # Phi 3
        "<|return|>",  # gpt-oss
        "<|eot|>",  # Llama 4
        "<|eos|>",  # Hunyuan
        "<|end_of_turn|>",  # OpenChat
        "<|user|>",  # GLM stops at the next turn's beginning
        "<|observation|>",
        "<|END_OF_TURN_TOKEN|>",  # Command R
    ),
)
"of a prompt without turns, or of messages: the policy's tokenizer may be any"

UNREAD = re.compile(r"\[(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]")
"how prompts of Mistral and Llama 2 begin; each has its [/...]"
