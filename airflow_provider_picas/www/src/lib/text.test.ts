import { describe, expect, it } from "vitest";

import { linked, pretty, shown, tail } from "./text";

describe("foreign text", () => {
  it("loses what a terminal would act on", () => {
    expect(shown("\u001b[31mred\u001b[0m \u001b]0;title\u0007end\u001b[2J")).toBe("red end");
    expect(shown("a\u0000b\u009bc")).toBe("a\ufffdb\ufffdc");
    expect(shown("one\r\ntwo\rthree\t.")).toBe("one\ntwo\nthree\t.");
  });

  it("names marks that turn text round or that no one sees", () => {
    expect(shown("photo\u202egnp.exe")).toBe("photo⟨U+202E⟩gnp.exe");
    expect(shown("a\u200bb\ufeff")).toBe("a⟨U+200B⟩b⟨U+FEFF⟩");
  });

  it("keeps tags as they are: React shows them as text", () => {
    expect(shown("<script>alert(1)</script>")).toBe("<script>alert(1)</script>");
  });

  it("gives links to web addresses alone", () => {
    const hrefs = (text: string) => linked(text).flatMap(({ href }) => href ?? []);
    expect(hrefs("see https://a.example/b?c=d. Or (http://e.example/f)")).toEqual(["https://a.example/b?c=d", "http://e.example/f"]);
    expect(hrefs("javascript:alert(1) data:text/html,x file:///etc/passwd ftp://x HTTPS")).toEqual([]);
    expect(hrefs('https://a.example/"onmouseover="x')).toEqual(["https://a.example/"]);
    const text = "a https://b.example c";
    expect(linked(text).map((part) => part.text).join("")).toBe(text);
  });

  it("is cut at the beginning of a line", () => {
    expect(tail("one\ntwo\nthree", 9)).toBe("three");
    expect(tail("short", 10)).toBe("short");
    expect(tail("x".repeat(20), 5)).toBe("xxxxx");
  });

  it("is laid out if it is JSON", () => {
    expect(pretty('{"a":1}')).toBe('{\n  "a": 1\n}');
    expect(pretty("{not json")).toBe("{not json");
    expect(pretty("3")).toBe("3");
  });
});
