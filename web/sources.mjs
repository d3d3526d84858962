// The hash of what the page is built from: every file of web/ but what npm installs. tests/serve/test_page.py computes the same without Node.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";

export function sourcesHash(root) {
  const files = readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .filter((path) => !path.startsWith("node_modules"))
    .sort();
  const whole = createHash("sha256");
  for (const path of files)
    whole.update(
      `${path} ${createHash("sha256")
        .update(readFileSync(join(root, path)))
        .digest("hex")}\n`,
    );
  return whole.digest("hex");
}
