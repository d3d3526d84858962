"""The page at `/`: files that web/ is built to, and what a browser is told it may do with them. They are public: who asks for keys, asks in the page."""
from __future__ import annotations

from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response

ASSETS = Path(__file__).parent / "assets"
FILES = {"/": "index.html", "/assets/page.js": "page.js", "/assets/page.css": "page.css", "/assets/icon.svg": "icon.svg"}
MEDIA = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
# Nothing is fetched from elsewhere, nothing inline runs, and text becomes markup only where DOMPurify has cleaned it:
# https://www.w3.org/TR/CSP3 and https://www.w3.org/TR/trusted-types.
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
    "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types dompurify"))
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
    "X-DNS-Prefetch-Control": "off",  # a browser may look up the names in links that a model wrote
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # a newer Pellucid has a newer page; an old copy is asked about by its ETag
}


def add_page(app: FastAPI) -> None:
    """Its routes. They are none of the API's, and not in its document."""
    for path, name in FILES.items():
        app.add_api_route(path, partial(_file, name), methods=["GET"], include_in_schema=False, response_class=Response, name=f"page {name}")


async def _file(name: str) -> Response:
    return FileResponse(ASSETS / name, media_type=MEDIA[Path(name).suffix], headers=HEADERS)
