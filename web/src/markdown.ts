// What a model wrote, as a page shows it. Markup it wrote is shown as text; what marked makes of the rest passes through DOMPurify; images,
// which would be fetched from wherever a model says, become text. The page's Content-Security-Policy stands behind both.
import DOMPurify from "dompurify";
import { Marked, type Tokens } from "marked";

const escaped = (text: string): string => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  async: false,
  renderer: {
    html: ({ text }: Tokens.HTML | Tokens.Tag) => escaped(text),
    image: ({ href, text }: Tokens.Image) => `<span class="image">${escaped(`[image${text ? `: ${text}` : ""}: ${href}]`)}</span>`,
  },
});

const KEPT = {
  ALLOWED_TAGS: [
    "p",
    "br",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "blockquote",
    "pre",
    "code",
    "em",
    "strong",
    "del",
    "a",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
    "input",
  ],
  ALLOWED_ATTR: ["href", "class", "start", "align", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
};

export function render(text: string): DocumentFragment {
  const out = DOMPurify.sanitize(marked.parse(text) as string, KEPT);
  for (const link of out.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  return out;
}
