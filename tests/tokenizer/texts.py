"""Texts that tokenizers get wrong: every script, emoji, odd spaces, control characters, spelled-out special tokens."""
from hypothesis import strategies as st

SCRIPTS = [
    "The quick brown fox; it's 1234567890 o'clock, we'll SEE.", "Straße, naïve café, Ünïcode, Łódź, đường phố",
    "Η γρήγορη αλεπού", "Съешь ещё этих мягких булок",
    "Արագ շագանակագույն", "שלום עולם", "مرحبا بالعالم ١٢٣", "ܫܠܡܐ", "ދިވެހި", "नमस्ते दुनिया क्षत्रिय",
    "হ্যালো বিশ্ব", "ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "નમસ્તે", "ନମସ୍କାର",
    "வணக்கம் உலகம்", "హలో ప్రపంచం", "ಹಲೋ ಪ್ರಪಂಚ", "ഹലോ ലോകം", "ආයුබෝවන්", "สวัสดีชาวโลก", "ສະບາຍດີ", "བཀྲ་ཤིས་བདེ་ལེགས",
    "မင်္ဂလာပါ", "გამარჯობა", "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u1173\u11af", "ሰላም ልዑል", "ᎣᏏᏲ", "ᐃᓄᒃᑎᑐᑦ", "សួស្តី", "ᠮᠣᠩᠭᠣᠯ", "こんにちは世界",
    "カタカナ ｶﾀｶﾅ", "你好，世界！漢字", "ꆈꌠꁱꂷ", "𐌲𐌿𐍄", "𐐔𐐯𐑅𐐨𐑉𐐯𐐻", "𒀭𒈹", "𝒜𝓁𝑔",
]
ODD = [
    "", " ", "  ", "   a   b   ", " leading", "trailing ", "\t\ttabs\t", "a\nb\r\nc\rd\n\n\n",
    "\u00a0nbsp\u2003em\u3000ideographic\u200bzero\u2028line\u2029par\u0085nel",
    "\x00\x01\x07\x1b[0m\x7f", "e\u0301 vs é, ﬁ ① Ⅳ ½ ﷺ", "😀 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ✊🏿 ☺️", "▁ ▁▁ a▁b▁",
    "<s></s><unk> <0x41><0x0A> <pad> [INST] <|endoftext|> <|im_start|>",
    "aaaaaaa bbbbbbbbbbb ababababab ------- ......", "don't I'LL we'Ve 'ſ", "x" * 300, " " * 40 + "x",
    "def f(x):\n\t\treturn  x + 1  # ok\n", "\ufeffbom \ufffd \ufdd0 \U0010ffff",
    "http://a.b/c?d=e&f#g", "{\"k\": [1, 2.5e-3, null]}", "٣٤٥ ३४५ 三四五 ⅷ ²³",
]
ALL = SCRIPTS + ODD
TRAINING = ["the quick brown fox jumps over the lazy dog 1234567890", "hello world this is a test of tokens", "aaaa aaaaaaa ababab",
            "def f(x):\n\treturn x + 1",
            *SCRIPTS[:25], "日本語のテキスト 漢字かな交じり文", "  spaces   here "] * 12

_parts = st.one_of(st.sampled_from([*ALL, "<", ">", "▁", " ", "\n", "é", "日本", "😀"]), st.text(max_size=8))
texts = st.lists(_parts, max_size=8).map("".join)
