"""What the chat template writes after an answer: by it a generation knows that the answer has ended."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], str]:
    """Ids that end an answer, or else a text that does; neither where the template writes nothing that can be looked for."""
    answer = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    end = rendered.rpartition(answer)[2].strip()
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if ids and (len(ids) == 1 or ids[0] in tokenizer.added_tokens_decoder):
        return [ids[0]], ""
    # transformers finds a text only if the tokenizer can spell any word, and fails in generate() otherwise
    closed = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokenizer("abcdef")["input_ids"]
    return [], "" if closed else end
