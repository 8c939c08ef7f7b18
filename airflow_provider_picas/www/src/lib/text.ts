/** Foreign text (of tokens, pilots, Slurm) made harmless and readable. It is only ever shown as text. */

// What terminals act on: colours, cursor moves, titles (CSI, OSC and two-character sequences).
// eslint-disable-next-line no-control-regex
const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\-_])/g;
// eslint-disable-next-line no-control-regex
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g;
// Marks that turn the direction of text, or that no one sees: a name could pretend to be another.
const HIDDEN = /[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

const named = (character: string): string =>
  `⟨U+${character.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}⟩`;

/** Without terminal sequences, and with each hidden character named. */
export const shown = (text: string): string =>
  text.replace(/\r\n?/g, "\n").replace(ESCAPES, "").replace(CONTROLS, "\ufffd").replace(HIDDEN, named);

export interface Part {
  text: string;
  href?: string;
}

/** The text in parts, of which those that are web addresses have a link. No other scheme becomes a link. */
export const linked = (text: string): Part[] => {
  const parts: Part[] = [];
  let at = 0;
  for (const match of text.matchAll(/\bhttps?:\/\/[^\s<>"'`⟨⟩]+[^\s<>"'`⟨⟩.,;:!?)\]}]/g)) {
    if (match.index > at) {
      parts.push({ text: text.slice(at, match.index) });
    }
    parts.push({ text: match[0], href: match[0] });
    at = match.index + match[0].length;
  }
  if (at < text.length) {
    parts.push({ text: text.slice(at) });
  }
  return parts;
};

/** The end of a string, from the beginning of a line. `most`: the maximum number of characters. */
export const tail = (text: string, most: number): string => {
  if (text.length <= most) {
    return text;
  }
  const cut = text.slice(-most);
  const line = cut.indexOf("\n");
  return line >= 0 && line < most / 2 ? cut.slice(line + 1) : cut;
};

/** JSON over several lines; other text as it is. */
export const pretty = (text: string): string => {
  if (!/^[[{]/.test(text.trimStart())) {
    return text;
  }
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
};
