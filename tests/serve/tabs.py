"""Tabs of a real Chromium for the tests of the page. Nothing but this machine can be reached from them, and whatever they ask for is written down."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.api.scripted import scripted_model

expect.set_options(timeout=30_000)  # a busy machine takes its time; each wait ends with what it waits for
NAMES = {" ": "Ġ", "\n": "Ċ"}  # how a byte-level vocabulary spells what cannot be seen
HERE = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # tests may run as root, whom Chromium gives no sandbox


class Tab:
    """One tab at a server's page. asked: the address of every request; complaints: what the browser's console holds against the page."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.url = url
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("console", lambda line: self._hear(line.type, line.text))
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.page: Page = self.context.new_page()
        self.page.goto(url)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "the server responded with a status of" not in text:  # which the page itself shows
            self.complaints.append(text)

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def button(self, name: str, within: str = "body") -> Locator:
        return self.page.locator(within).get_by_role("button", name=name, exact=True)

    @property
    def answers(self) -> Locator:
        return self.find(".message.assistant .content")

    def say(self, text: str) -> None:
        self.find("#message").fill(text)
        self.find("#message").press("Enter")

    def ask(self, text: str) -> Locator:
        """Says something and waits until the answer is whole: its content."""
        n = self.answers.count()
        self.say(text)
        expect(self.answers).to_have_count(n + 1)
        self.whole()
        return self.answers.nth(n)

    def whole(self) -> None:
        expect(self.find(".composer").get_by_role("button", name="Send", exact=True)).to_be_enabled()

    def settings(self, **values: str) -> None:
        """Writes into fields of the settings, by their names."""
        self.find("[data-name=settings]").click()
        if any(name not in ("format", "schema", "system", "temperature", "max_tokens") for name in values):
            self.find("summary").filter(has_text="More").click()
        for name, value in values.items():
            field = self.find("#system" if name == "system" else f"#set-{name}")
            field.select_option(value) if name == "format" else field.fill(value)
        self.find(".panel").get_by_role("button", name="Close (Esc)").click()

    def strangers(self) -> list[str]:
        """Requests to anybody but the server."""
        return [url for url in self.asked if not url.startswith((f"{self.url}/", "blob:"))]

    def close(self) -> None:
        self.context.close()


def saying(folder: Path, script: list[str], **how: Any) -> Path:
    """A scripted model that answers any chat with these pieces of text, each of them one token; "..." at the end: again and again."""
    letters = [chr(ord("A") + i) for i in range(len(script))]
    loop = script[-1] == "..."
    chain = ["\n", *(letters[:-1] if loop else letters), *([letters[0]] if loop else [])]
    scripted_model(folder, [chain], **how)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf8"))
    for letter, text in zip(letters, script, strict=True):
        if text != "...":
            vocabulary = tokenizer["model"]["vocab"]
            vocabulary["".join(NAMES.get(c, c) for c in text)] = vocabulary.pop(letter)
    file.write_text(json.dumps(tokenizer), "utf8")
    return folder
