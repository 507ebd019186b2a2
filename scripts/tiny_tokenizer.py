"""Make the tokenizer of `local/tiny` from the words of the content files. Run once; its output is committed."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from truing.targets.local.tiny import SPECIAL

ROOT = Path(__file__).resolve().parents[1] / "src" / "truing"
texts = [path.read_text() for path in sorted(ROOT.rglob("content/**/*.yaml"))]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(
    texts,
    trainers.BpeTrainer(vocab_size=1536, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False),
)
tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
tokenizer.save(str(ROOT / "targets" / "local" / "content" / "tiny-tokenizer.json"), pretty=False)
print(tokenizer.get_vocab_size())
