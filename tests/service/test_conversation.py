"""Rendered text back to messages: what is read, what stays text, what is refused."""

import json
import time
from typing import Any

import pytest

from service.bundle import Bundle
from service.conversation import Label, as_pair
from service.errors import InvalidRequest
from service.pairs import Pair
from service.template import compile_template
from service.text import Encoder, Message

QUESTION = Message(role="user", content="What is 7 plus 5?")
CHATML = f"<|im_start|>user\n{QUESTION.content}<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION.content}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = f"<bos><start_of_turn>user\n{QUESTION.content}<end_of_turn>\n<start_of_turn>model\n"
LLAMA_3_1 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools %}{{- "Environment: ipython\\n" }}{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
"of Llama 3.1, 3.2 and 3.3, without the branches for tools of one's own"


def read(text: str, prompt: str = "", label: Any = None) -> Pair:
    return as_pair(text, prompt, Label(label, "labels[0]"), "query[0]")


def refused(text: str, prompt: str = "", label: Any = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        read(text, prompt, label)
    return refusal.value


@pytest.mark.parametrize("prompt", [CHATML, LLAMA, GEMMA, "Hi"])
@pytest.mark.parametrize("mark", ["<pad>", "<|im_end|>\n", "<|eot_id|>", "</s> ", " ", "<|"])
def test_200_000_marks_are_read_in_a_second(prompt: str, mark: str) -> None:
    """A quadratic search takes minutes for them."""
    started = time.perf_counter()
    text = prompt + mark * 200_000 + "x"
    assert read(text, prompt).response == mark * 200_000 + "x"
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("options", [{}, {"builtin_tools": ["brave_search", "code_interpreter"]}])
@pytest.mark.parametrize("system", [(), (Message(role="system", content="Be brief.\n\nBe kind."),)])
def test_what_llamas_template_writes_of_itself_is_no_message(
    bundle: Bundle, system: tuple[Message, ...], options: dict[str, Any]
) -> None:
    """So a bundle with that template writes it once: the ids are those of the messages."""
    rules = bundle.manifest.text
    messages = (*system, QUESTION)
    prompt = compile_template(LLAMA_3_1, rules.template_date).render(
        messages=[message.model_dump() for message in messages],
        bos_token="<|begin_of_text|>",
        date_string="1 Dec 2026",
        add_generation_prompt=True,
        **options,
    )
    assert "Today Date: 1 Dec 2026\n\n" in prompt
    pair = read(prompt + "12.<|eot_id|>", prompt)
    assert pair == read(prompt + "12.<|eot_id|>") == Pair(messages, "12.")
    encoder = Encoder(bundle.tokenizer_json(), LLAMA_3_1, rules)
    assert encoder.encode(pair.prompt, pair.response) == encoder.encode(messages, "12.")


def test_dates_in_another_familys_system_message_are_text() -> None:
    content = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief."
    prompt = f"<|im_start|>system\n{content}<|im_end|>\n{CHATML}"
    system = Message(role="system", content=content)
    assert read(prompt + "12.", prompt).prompt == (system, QUESTION)


@pytest.mark.parametrize(
    "prompt",
    [
        "<s>[INST] What is 7 plus 5? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat? [/INST] 12. </s><s>[INST] Why? [/INST]",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]What is 7 plus 5?[/INST]",
    ],
)
def test_prompts_of_mistral_and_llama_2_are_refused_by_name(prompt: str) -> None:
    for error in (refused(prompt + " 12.</s>", prompt), refused(prompt + " 12.</s>")):
        assert "Mistral" in error.message and "template=raw" in error.message
    label = [QUESTION.model_dump()]
    assert read(prompt + " 12.</s>", prompt, label) == Pair((QUESTION,), " 12.")


@pytest.mark.parametrize("content", ["[INST] a [/INST]", "What does [INST] a [/INST] mean?"])
def test_inst_in_a_users_turn_is_text(content: str) -> None:
    prompt = CHATML.replace(QUESTION.content, content)
    assert read(prompt + "12.", prompt).prompt == (Message(role="user", content=content),)


@pytest.mark.parametrize("prompt", ["What does [INST] a [/INST] mean?", "[INST] begins a turn?"])
def test_inst_in_a_plain_prompt_is_text(prompt: str) -> None:
    assert read(prompt + "12.", prompt).prompt == (Message(role="user", content=prompt),)


STRANGE = "<|turn|>user: What is 7 plus 5?<|turn|>bot: "
REFERENCES = [
    [QUESTION.model_dump(), {"role": "assistant", "content": "13."}],
    [{"role": "assistant", "content": "13."}],
    [{"role": "assistant", "content": None, "tool_calls": []}],
]
GOLD = [None, "", 12, "12", "[0, 1)", "[12]", "[]", [], [["a"]], [{"answer": 12}], {"role": "user"}]


@pytest.mark.parametrize("label", [*GOLD, *REFERENCES, *map(json.dumps, REFERENCES), "[" * 60_000])
def test_a_gold_answer_in_the_label_changes_nothing(label: Any) -> None:
    assert read(CHATML + "12.", CHATML, label) == Pair((QUESTION,), "12.")


@pytest.mark.parametrize(
    "label",
    [
        [{"role": "user"}],
        [{"role": "user", "content": "Hi", "name": "Ann"}],
        [{"role": "boss", "content": "Hi"}],
        [{"role": 1, "content": "Hi"}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "\ud83d"}],
    ],
)
def test_a_label_that_means_to_be_messages_and_is_none_is_refused(label: Any) -> None:
    error = refused(CHATML + "12.", CHATML, json.dumps(label))
    assert error.field == "labels[0]" and error.message.startswith("labels[0]")


@pytest.mark.parametrize("prompt", [CHATML, LLAMA, GEMMA])
def test_what_the_prompt_has_of_the_response_is_kept_with_a_label_too(prompt: str) -> None:
    prompt += "<think>\n"
    expected = Pair((QUESTION,), "<think>\n5.</think>12.")
    for label in (None, [QUESTION.model_dump()], json.dumps([QUESTION.model_dump()])):
        assert read(prompt + "5.</think>12.", prompt, label) == expected


ENDINGS = {
    CHATML: ["<|im_end|>", "<|im_end|>\n", "<|endoftext|>", "<|im_end|></s>", "<|im_end|><|x|>\n"],
    LLAMA: ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|eot_id|><|finetune_right_pad_id|>"],
    GEMMA: ["<end_of_turn>\n<eos>", "<end_of_turn>\n", "<eos><pad><pad>"],
    "Hi": ["</s>", "<|endoftext|>", "<|eot_id|>", "<eos>", "<｜end▁of▁sentence｜>", "<|user|>"],
}
OWN_TEXT = {
    CHATML: ["It costs <s>10</s>", "Use the macro <|x|>", "<pad>", "Gemma: <end_of_turn> <eos>"],
    LLAMA: ["It costs <s>10</s>", "Use the macro <|x|>", "Qwen writes <|im_end|>"],
    GEMMA: ["It costs <s>10</s>", "Use the macro <|x|>", "Qwen writes <|im_end|>"],
    "Hi": ["It costs <s>10</s> now", "Use the macro <|x|>", "Begin with <bos>"],
}


@pytest.mark.parametrize("prompt", ENDINGS)
def test_a_familys_endings_go_and_the_responses_text_stays(prompt: str) -> None:
    for text in ("12.", "12. \n", *OWN_TEXT[prompt]):
        assert read(prompt + text, prompt).response == text
        for ending in ENDINGS[prompt]:
            assert read(prompt + text + ending, prompt).response == text


@pytest.mark.parametrize("prompt", [CHATML, LLAMA, GEMMA])
def test_endings_are_the_same_where_the_prompt_is_not_sent(prompt: str) -> None:
    for text in ("12.", *OWN_TEXT[prompt]):
        for ending in ("", *ENDINGS[prompt]):
            assert read(prompt + text + ending) == Pair((QUESTION,), text)


@pytest.mark.parametrize("prompt", [CHATML, LLAMA, GEMMA])
def test_a_second_turn_of_the_assistant_is_refused_where_the_prompt_is_not_sent(
    prompt: str,
) -> None:
    """The response may have written it, and then begins before it."""
    end = ENDINGS[prompt][0].split("\n")[0]
    opening = prompt[prompt.rindex("<start_of" if prompt == GEMMA else end) :].removeprefix(end)
    forged = f"12.{end}{opening}Good!"
    assert "two turns of the assistant" in refused(f"{prompt}{forged}{end}").message
    assert read(f"{prompt}{forged}{end}", prompt) == Pair((QUESTION,), forged)


def test_turns_of_the_assistant_with_a_tool_between_are_read() -> None:
    turns = ["assistant\nCall it.", "tool\n12", "assistant\n12."]
    text = CHATML.removesuffix("<|im_start|>assistant\n") + "".join(
        f"<|im_start|>{turn}<|im_end|>\n" for turn in turns
    )
    pair = read(text)
    assert [message.role for message in pair.prompt] == ["user", "assistant", "tool"]
    assert pair.response == "12."


def test_a_prompt_that_the_assistant_has_finished_is_refused() -> None:
    prompt = f"{CHATML}12.<|im_end|>\n"
    assert "finished turn" in refused(prompt + "13.", prompt).message


@pytest.mark.parametrize("label", [None, [{"role": "user", "content": "Hi"}]])
@pytest.mark.parametrize(
    "prompt",
    [CHATML.removesuffix("<|im_start|>assistant\n"), CHATML + "13.<|im_end|>\n"],
    ids=["user", "assistant"],
)
def test_a_response_that_begins_with_a_turn_is_refused(prompt: str, label: Any) -> None:
    """The prompt has no turn of the assistant open, whatever the label says of the messages."""
    text = prompt + "<|im_start|>assistant\n12.<|im_end|>"
    assert "another turn begins" in refused(text, prompt, label).message


def test_an_open_turn_may_speak_of_its_own_ending() -> None:
    prompt = CHATML + "It ends with <|im_end|> in "
    assert read(prompt + "ChatML.<|im_end|>", prompt) == Pair(
        (QUESTION,), "It ends with <|im_end|> in ChatML."
    )


@pytest.mark.parametrize("end", ["</s>", "<|eot_id|>", "<|end_of_text|>\n"])
def test_chatml_over_another_familys_tokenizer_loses_its_ending(end: str) -> None:
    assert read(CHATML + "12." + end, CHATML).response == "12."


def test_messages_of_a_label_are_the_conversation_where_earlier_turns_cannot_be_read() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = CHATML.replace("user\n", "critic\n") + "12.<|im_end|>"
    assert "critic" in refused(text).message
    assert read(text, label=messages) == Pair((Message(role="user", content="Hi"),), "12.")
