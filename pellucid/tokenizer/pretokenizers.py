"""How text is split into words before pairs are merged, by the name a GGUF file gives it: `tokenizer.ggml.pre`.

The names are those that llama.cpp knows, with its flags; where its source quotes the pattern of the model's own tokenizer.json beside one that its
regular expressions can compute, the model's own stands here. NFC is what transformers 5.23 puts before the same vocabularies (qwen2, qwen3_5,
gpt_neox, cohere: tokenization_*.py) and llama.cpp leaves out.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp (llm_tokenizer_bpe, llama_vocab::impl::load) and unicode.cpp beside it
"""
from __future__ import annotations

from dataclasses import dataclass

from pellucid.tokenizer.bytelevel import GPT2_PATTERN, QWEN_PATTERN
from pellucid.tokenizer.ranks import LLAMA3_PATTERN, O200K_PATTERN


@dataclass(frozen=True, slots=True, kw_only=True)
class Pre:
    """split: one pattern after the other, each on the pieces the last one left; matches and what lies between them are both pieces.

    whole_words_first: a piece of the vocabulary is one token even where no merge leads to it. adds_bos: where the file does not say.
    spaced: no bytes as characters: spaces are written ▁ and what is no token becomes byte tokens, as in SentencePiece.
    """

    split: tuple[str, ...]
    whole_words_first: bool = False
    adds_bos: bool = False
    nfc: bool = False
    spaced: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|")
_MARKED_QWEN = QWEN_PATTERN.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_NO_HAN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+" + f"{_CONTRACTIONS}?|"
           r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*" + f"{_CONTRACTIONS}?|")
_MARKED_WORDS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_KANA_AND_HAN = "[一-龥぀-ゟ゠-ヿ]+"  # U+4E00-9FA5, U+3040-309F, U+30A0-30FF
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_NEWLINES = r"[^\n]+|[\n]+"
_DEEPSEEK_LETTERS = ("[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ"
                     "ᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏"
                     "𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]")
_DEEPSEEK_HAN = "[一-龥ࠀ-一가-퟿]+"
_AFMOE = ("[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-"
          "៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+")
_YOUTU = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_THREES = r"\d{1,3}(?=(?:\d{3})*\b)"  # counted from the right: 1 234 567

_TABLE: list[tuple[str, Pre]] = [
    ("default", Pre(split=(r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4 jais trillion granite-docling "
     "jina-v1-en jina-v2-code roberta-bpe",
     Pre(split=(GPT2_PATTERN,))),
    ("mpt olmo", Pre(split=(GPT2_PATTERN,), nfc=True)),
    ("starcoder refact smollm codeshell exaone minerva-7b mellum2", Pre(split=(r"\p{N}", GPT2_PATTERN))),
    ("command-r", Pre(split=(r"\p{N}", GPT2_PATTERN), nfc=True)),
    ("falcon", Pre(split=(r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"))),
    ("chameleon", Pre(split=(r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]",
                             GPT2_PATTERN), adds_bos=True)),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
     Pre(split=(LLAMA3_PATTERN,), whole_words_first=True, adds_bos=True)),
    ("dbrx smaug-bpe chatglm-bpe", Pre(split=(LLAMA3_PATTERN,))),
    ("glm4 glm5", Pre(split=(LLAMA3_PATTERN,), whole_words_first=True)),
    ("minicpm5", Pre(split=(r"\p{N}{1,3}", LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}+")), whole_words_first=True)),
    ("jais-2", Pre(split=(LLAMA3_PATTERN.removesuffix(r"\s+(?!\S)|\s+") + "|".join(
        [*(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s{1}"]),))),
    ("qwen2", Pre(split=(QWEN_PATTERN,), nfc=True)),
    ("deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", Pre(split=(QWEN_PATTERN,))),
    ("qwen35", Pre(split=(_MARKED_QWEN,), nfc=True)),
    ("ufakzeka", Pre(split=(QWEN_PATTERN.removeprefix(f"{_CONTRACTIONS}|"),))),
    ("laguna", Pre(split=(_NEWLINES, QWEN_PATTERN))),
    ("seed-coder", Pre(split=(_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,))),
    ("bailingmoe bailingmoe2 llada-moe", Pre(split=(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",))),
    ("exaone-moe", Pre(split=(
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",))),
    ("tekken", Pre(split=((_CASED % ("", "")) + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,), whole_words_first=True, adds_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Pre(split=(O200K_PATTERN,))),
    ("granite-embed-multi-97m", Pre(split=(O200K_PATTERN,), whole_words_first=True)),
    ("tiny_aya cohere2moe", Pre(split=(_THREES, O200K_PATTERN))),
    ("kimi-k2", Pre(split=(r"[\p{Han}]+|" + _NO_HAN + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,))),
    ("youtu", Pre(split=(_YOUTU, (_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?")) + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES),
                  whole_words_first=True)),
    ("superbpe", Pre(split=(r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    ("deepseek-llm",
     Pre(split=(r"[\r\n]", rf"\s?{_DEEPSEEK_LETTERS}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _DEEPSEEK_HAN, r"\p{N}+"))),
    ("deepseek-coder", Pre(split=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}"))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Pre(split=(r"\p{N}{1,3}", _KANA_AND_HAN, _MARKED_WORDS + r"[\r\n]*|" + _SPACES))),
    ("spark2_5", Pre(split=(r"\p{N}{1,3}", _KANA_AND_HAN, _MARKED_WORDS + r"|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"))),
    ("afmoe", Pre(split=(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _AFMOE, _MARKED_WORDS + r"[\r\n]*|" + _SPACES))),
    ("bloom gpt3-finnish poro-chat", Pre(split=(_BLOOM,))),
    ("viking", Pre(split=(_BLOOM, r"\p{N}"))),
    ("gemma4 granite-embed-multi-311m", Pre(split=(), adds_bos=True, spaced=True)),
    ("sarvam-moe", Pre(split=(), spaced=True)),
]
PRE = {name: pre for names, pre in _TABLE for name in names.split()}

