import { signal } from "@preact/signals";
import { de } from "./de";
import { en, type Dictionary, type Key } from "./en";

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

export function time(ts: number): string {
    return new Intl.DateTimeFormat(language.value, { hour: "2-digit", minute: "2-digit" }).format(ts);
}

/** A day as people say it. */
export function day(ts: number): string {
    const midnight = new Date().setHours(0, 0, 0, 0);
    if (ts >= midnight) return t("room.today");
    if (ts >= midnight - 24 * 3600_000) return t("room.yesterday");
    return new Intl.DateTimeFormat(language.value, { dateStyle: "medium" }).format(ts);
}

/** Milliseconds as 1:05. */
export function duration(ms: number): string {
    const seconds = Math.max(0, Math.round(ms / 1000));
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
