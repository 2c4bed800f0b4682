import { signal } from "@preact/signals";
import { de } from "./de";
import { en, type Dictionary, type Key } from "./en";

export type { Key };

/** All languages, one file each. */
export const languages: Record<string, Dictionary> = { en, de };

const storageKey = "parley.language";

function preferred(): string {
    const stored = localStorage.getItem(storageKey);
    if (stored && languages[stored]) return stored;
    return navigator.languages.map((l) => l.slice(0, 2)).find((l) => languages[l]) ?? "en";
}

/** The language in use. */
export const language = signal(preferred());

export function setLanguage(code: string): void {
    localStorage.setItem(storageKey, code);
    language.value = code;
    document.documentElement.lang = code;
}

/** The text for a key, with {names} replaced. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
    return languages[language.value][key].replace(/\{(\w+)\}/g, (_, name: string) => String(values[name] ?? ""));
}

const formats = new Map<string, Intl.DateTimeFormat>();

/** Making a format takes longer than using one. */
function format(options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
    const key = `${language.value} ${JSON.stringify(options)}`;
    const known = formats.get(key) ?? new Intl.DateTimeFormat(language.value, options);
    formats.set(key, known);
    return known;
}

export function time(ts: number): string {
    return format({ hour: "2-digit", minute: "2-digit" }).format(ts);
}

/** A number for the day of a time, as the person's clock has it. */
export function dayNumber(ts: number): number {
    return Math.floor((ts - new Date(ts).getTimezoneOffset() * 60_000) / 86_400_000);
}

/** A day as people say it. */
export function day(ts: number): string {
    const ago = dayNumber(Date.now()) - dayNumber(ts);
    if (ago === 0) return t("room.today");
    if (ago === 1) return t("room.yesterday");
    return format({ dateStyle: "medium" }).format(ts);
}

/** The time of today, the day of what is older. */
export function shortTime(ts: number): string {
    const ago = dayNumber(Date.now()) - dayNumber(ts);
    if (ago === 0) return time(ts);
    if (ago === 1) return t("room.yesterday");
    return format({ day: "numeric", month: "short" }).format(ts);
}

/** Milliseconds as 1:05. */
export function duration(ms: number): string {
    const seconds = Math.max(0, Math.round(ms / 1000));
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
