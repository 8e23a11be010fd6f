"""Vocabularies in the files that a tokenizer class of transformers reads, written without the class: some need packages."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers


@dataclass(frozen=True, kw_only=True)
class VocabularyFiles:
    """The files of a tokenizer.

    Attributes:
        tokenizer_class: of transformers.
        algorithm: in words.
        files: name → content.
        ids: token → id.
        special: ``pad``, ``bos``, … → token, as the class has it by default.
    """

    tokenizer_class: str
    algorithm: str
    files: Mapping[str, str | bytes]
    ids: Mapping[str, int]
    special: Mapping[str, str]

    @property
    def words(self) -> int:
        """How many ids there are."""
        return max(self.ids.values()) + 1

    def id_of(self, special: str) -> int | None:
        """Return the id of ``pad``, ``bos``, …, or None."""
        return self.ids[self.special[special]] if special in self.special else None

    def save_pretrained(self, folder: Path) -> None:
        """Write the files and tokenizer_config.json."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        named = {f"{name}_token": token for name, token in self.special.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": self.tokenizer_class, **named}), encoding="utf-8")


_FAIRSEQ = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
# Its class adds those that a vocabulary lacks.
_XLM_MORE = tuple(f"<special{number}>" for number in range(10))
_XLM = {"bos": "<s>", "sep": "</s>", "pad": "<pad>", "cls": "</s>", "unk": "<unk>", "mask": "<special1>"}
_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def _words(sentences: Sequence[str]) -> list[str]:
    return sorted({word for sentence in sentences for word in sentence.lower().replace(".", " .").split()})


def _letters(sentences: Sequence[str]) -> list[str]:
    return sorted({letter for sentence in sentences for letter in sentence + sentence.lower() if not letter.isspace()})


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _merged(name: str, special: Mapping[str, str], more: Sequence[str] = ()) -> Callable[[Sequence[str]], VocabularyFiles]:
    """Letters within and at the end of a word, and two merges."""

    def build(sentences: Sequence[str]) -> VocabularyFiles:
        letters = _letters(sentences)
        ids = _numbered([*special.values(), *more, *letters, *(f"{letter}</w>" for letter in letters), "th", "in</w>"])
        files = {"vocab.json": json.dumps(ids), "merges.txt": "#version: 0.2\nt h 2\ni n</w> 1\n"}
        return VocabularyFiles(tokenizer_class=name, algorithm="BPE", files=files, ids=ids, special=special)

    return build


def _control(sentences: Sequence[str]) -> VocabularyFiles:
    """CTRL marks every piece of a word but the last with @@."""
    letters = _letters(sentences)
    ids = _numbered(["<unk>", *letters, *(f"{letter}@@" for letter in letters), "th@@"])
    files = {"vocab.json": json.dumps(ids), "merges.txt": "#version: 0.2\nt h\n"}
    return VocabularyFiles(tokenizer_class="CTRLTokenizer", algorithm="BPE", files=files, ids=ids, special={"unk": "<unk>"})


def _pieces(sentences: Sequence[str]) -> list[str]:
    letters = _letters(sentences)
    return [*_BERT.values(), "[EMPTY]", *_words(sentences), *letters, *(f"##{letter}" for letter in letters)]


def _word_pieces(name: str) -> Callable[[Sequence[str]], VocabularyFiles]:
    def build(sentences: Sequence[str]) -> VocabularyFiles:
        ids = _numbered(_pieces(sentences))
        return VocabularyFiles(tokenizer_class=name, algorithm="WordPiece", files={"vocab.txt": "\n".join(ids)}, ids=ids, special=_BERT)

    return build


def _chinese(sentences: Sequence[str]) -> VocabularyFiles:
    """RoCBERT also numbers the shape and the sound of every word; here they are numbered as the words are."""
    ids = _numbered(_pieces(sentences))
    numbers = json.dumps(ids)
    files = {"vocab.txt": "\n".join(ids), "word_shape.json": numbers, "word_pronunciation.json": numbers}
    return VocabularyFiles(tokenizer_class="RoCBertTokenizer", algorithm="WordPiece", files=files, ids=ids, special=_BERT)


def _amino_acids(_: Sequence[str]) -> VocabularyFiles:
    ids = _numbered(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"])
    special = {"cls": "<cls>", "pad": "<pad>", "eos": "<eos>", "unk": "<unk>", "mask": "<mask>"}
    return VocabularyFiles(
        tokenizer_class="EsmTokenizer", algorithm="letters", files={"vocab.txt": "\n".join(ids)}, ids=ids, special=special
    )


def _sentence_pieces(sentences: Sequence[str], control: Sequence[str]) -> tuple[list[str], bytes]:
    """Return the pieces of a SentencePiece model, ``control`` first, and its file. Among them is ``<unk>``."""
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        sentences, trainers.UnigramTrainer(vocab_size=400, special_tokens=list(control), unk_token="<unk>", show_progress=False)
    )
    proto, kinds = ModelProto(), ModelProto.SentencePiece
    types = dict.fromkeys(control, kinds.CONTROL) | {"<unk>": kinds.UNKNOWN}
    for piece, score in json.loads(trained.to_str())["model"]["vocab"]:
        proto.pieces.add(piece=piece, score=score, type=types.get(piece, kinds.NORMAL))
    proto.trainer_spec.unk_id = control.index("<unk>")
    return [one.piece for one in proto.pieces], proto.SerializeToString()


def _programs(sentences: Sequence[str]) -> VocabularyFiles:
    """PLBART's ids are those of the SentencePiece model plus 1, after ``<s>`` and ``<pad>``; languages and the mask follow."""
    pieces, model = _sentence_pieces(sentences, ("<unk>", "<s>", "</s>"))
    ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {piece: number + 1 for number, piece in enumerate(pieces) if number >= 3}
    ids |= {token: len(pieces) + 1 + n for n, token in enumerate(("__java__", "__python__", "__en_XX__", "<mask>"))}
    return VocabularyFiles(
        tokenizer_class="PLBartTokenizer",
        algorithm="Unigram",
        files={"sentencepiece.bpe.model": model},
        ids=ids,
        special=_FAIRSEQ | {"sep": "</s>", "cls": "<s>", "mask": "<mask>"},
    )


def _swedish(sentences: Sequence[str]) -> VocabularyFiles:
    """GPT-SW3's ids are those of the SentencePiece model."""
    special = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "<|endoftext|>"}
    pieces, model = _sentence_pieces(sentences, tuple(special.values()))
    return VocabularyFiles(
        tokenizer_class="GPTSw3Tokenizer", algorithm="Unigram", files={"spiece.model": model}, ids=_numbered(pieces), special=special
    )


FILES: dict[str, Callable[[Sequence[str]], VocabularyFiles]] = {
    "BioGptTokenizer": _merged("BioGptTokenizer", _FAIRSEQ | {"sep": "</s>"}),
    "CTRLTokenizer": _control,
    "EsmTokenizer": _amino_acids,
    "FlaubertTokenizer": _merged("FlaubertTokenizer", _XLM, _XLM_MORE),
    "GPTSw3Tokenizer": _swedish,
    "PLBartTokenizer": _programs,
    "RoCBertTokenizer": _chinese,
    "RoFormerTokenizer": _word_pieces("RoFormerTokenizer"),
    "TapasTokenizer": _word_pieces("TapasTokenizer"),
    "XLMTokenizer": _merged("XLMTokenizer", _XLM, _XLM_MORE),
}
