// Whether this Node builds the page: vite 8 asks for 20.19, or 22.12 and newer (engines in its package.json).
const [major, minor] = process.versions.node.split(".").map(Number);
if (!((major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22)) {
  console.error(`web/ is built with Node 20.19 or newer, and this is ${process.versions.node}`);
  process.exit(1);
}
