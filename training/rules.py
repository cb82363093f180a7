"""A transformers tokenizer -> the text rules that the bundle will state."""

from transformers import PreTrainedTokenizerBase

from service.errors import TrainingError
from service.manifest import TextRules
from training.config import Text


def text_rules(tokenizer: PreTrainedTokenizerBase, text: Text) -> TextRules:
    """The special-token rule of a tokenizer, as the bundle will state it.

    BOS goes first where the tokenizer or the template puts it there by itself; for encoders that is
    their [CLS]. Without a chat template the end-of-sequence token follows the response, as in TRL
    (for encoders [SEP], as their tokenizers do); a template writes its own.
    """
    bos = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    eos = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    turns = [{"role": "user", "content": "a"}]
    beginnings = [tokenizer("a").input_ids[:1]]
    if tokenizer.chat_template:
        beginnings.append(tokenizer.apply_chat_template(turns, return_dict=False)[:1])
    begins_with_bos = bos is not None and [bos] in beginnings
    # where EOS is also the padding, transformers reads the reward before it: it never counts
    ends = not tokenizer.chat_template and eos != tokenizer.pad_token_id
    add_eos = text.ending == "eos" or (text.ending == "auto" and ends)
    if add_eos and eos is None:
        raise TrainingError('text.ending: the tokenizer has no EOS token; set it to "none"')
    return TextRules(
        bos_id=bos if begins_with_bos else None,
        ending_ids=(eos,) if add_eos and eos is not None else (),
        max_prompt_tokens=text.max_prompt_tokens,
        max_response_tokens=text.max_response_tokens,
        template_date=text.template_date.isoformat(),
        template_variables={
            name: token
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        },
    )
