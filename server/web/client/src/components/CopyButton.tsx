import { useSignal } from "@preact/signals";
import { t } from "../i18n";

/** Copies a text, and says that it did. */
export function CopyButton({ text }: { text: string }) {
    const copied = useSignal(false);
    async function copy(): Promise<void> {
        await navigator.clipboard.writeText(text);
        copied.value = true;
        setTimeout(() => (copied.value = false), 2000);
    }
    return (
        <button type="button" onClick={() => void copy().catch((error) => console.warn("copy", error))}>
            <span aria-live="polite">{copied.value ? t("app.copied") : t("app.copy")}</span>
        </button>
    );
}
