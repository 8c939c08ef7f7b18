/** What drawings need of the page around them. */
import { type RefObject, useCallback, useEffect, useState } from "react";

/** The width of an element, kept as it changes. */
export const useWidth = (place: RefObject<HTMLElement | null>): number => {
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const element = place.current;
    if (!element) {
      return undefined;
    }
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry?.contentRect.width ?? 0)));
    observer.observe(element);
    return () => observer.disconnect();
  }, [place]);
  return width;
};

/** Colours of the theme as a canvas takes them; `theme` changes with light and dark. */
export const useColours = (place: RefObject<HTMLElement | null>) => {
  const [theme, setTheme] = useState(() => document.documentElement.className);
  useEffect(() => {
    const observer = new MutationObserver(() => setTheme(document.documentElement.className));
    observer.observe(document.documentElement, { attributeFilter: ["class", "data-theme", "style"] });
    return () => observer.disconnect();
  }, []);
  const colour = useCallback(
    (name: string): string => {
      const probe = document.createElement("span");
      probe.style.color = `var(${name})`;
      (place.current ?? document.body).append(probe);
      const found = getComputedStyle(probe).color;
      probe.remove();
      return found;
    },
    [place],
  );
  return { colour, theme };
};
