// The texts of a page that are hard to read: [its beginning, its contrast] of each below 4.5, as WCAG 2.2 counts it.
() => {
  const rgb = (text) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(color[i] / 255), 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = rgb(getComputedStyle(element).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255];
  };
  const written = (e) => e.offsetParent && !e.closest(":disabled") && [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
  const contrast = (e) => {
    const [more, less] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
    return (more + 0.05) / (less + 0.05);
  };
  const all = [...document.querySelectorAll("body *")].filter(written);
  return { faint: all.map((e) => [e.textContent.slice(0, 40), contrast(e)]).filter(([, ratio]) => ratio < 4.5), read: all.length };
}
