import { useSignal } from "@preact/signals";
import type { MatrixEvent } from "matrix-js-sdk";
import { t } from "../i18n";
import { composing, react } from "../matrix/composing";
import { bodyOf, senderName, summary, voiceOf } from "../matrix/messages";
import { problem } from "../matrix/problem";
import { me } from "../matrix/session";
import { transcripts } from "../voice/transcripts";
import { Dialog } from "./Dialog";
import { Icon } from "./Icon";
import { confirmed } from "./Questions";

const reactions = ["👍", "❤️", "😂", "😮", "🙏", "✅"];

/** What can be done with a message. */
export function MessageActions({ event, mine, onClose }: { event: MatrixEvent; mine: boolean; onClose(): void }) {
    const trouble = useSignal("");
    const correcting = useSignal(false);
    const voice = voiceOf(event);
    const text = event.getContent().msgtype === "m.text";
    const room = me().getRoom(event.getRoomId())!;
    const mayDelete = mine || room.currentState.maySendRedactionForEvent(event, me().getUserId()!);

    const run = async (what: () => Promise<unknown>): Promise<void> => {
        try {
            await what();
            onClose();
        } catch (error) {
            trouble.value = problem(error);
        }
    };
    const compose = (mode: "reply" | "edit"): void => {
        onClose();
        composing.value = { mode, event };
    };

    if (correcting.value) return <Correction event={event} onClose={onClose} />;
    return (
        <Dialog title={t("actions.title", { name: senderName(event) })} onClose={onClose}>
            <p class="excerpt" dir="auto">
                {summary(event)}
            </p>
            <div class="buttons quick" role="group" aria-label={t("actions.react")}>
                {reactions.map((key) => (
                    <button key={key} class="round" aria-label={t("actions.reactWith", { key })} onClick={() => void run(() => react(event, key))}>
                        {key}
                    </button>
                ))}
            </div>
            <div class="menu">
                <button onClick={() => compose("reply")}>
                    <Icon name="reply" /> {t("actions.reply")}
                </button>
                {mine && text && (
                    <button onClick={() => compose("edit")}>
                        <Icon name="edit" /> {t("actions.edit")}
                    </button>
                )}
                {(text || voice?.transcript?.text) && (
                    <button onClick={() => void run(() => navigator.clipboard.writeText(voice?.transcript?.text ?? bodyOf(event)))}>
                        <Icon name="copy" /> {t("actions.copy")}
                    </button>
                )}
                {mine && voice && !event.getContent().file && (
                    <button onClick={() => (correcting.value = true)}>
                        <Icon name="edit" /> {t("transcript.correct")}
                    </button>
                )}
                {mayDelete && (
                    <button
                        class="danger"
                        onClick={async () => {
                            onClose();
                            if (!(await confirmed({ title: t("actions.deleteTitle"), text: t("actions.deleteText"), yes: t("room.delete"), danger: true }))) return;
                            await me()
                                .redactEvent(event.getRoomId()!, event.getId()!)
                                .catch((error) => console.warn("delete", error));
                        }}
                    >
                        <Icon name="trash" /> {t("room.delete")}
                    </button>
                )}
            </div>
            {trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
            <div class="buttons end">
                <button onClick={onClose}>{t("app.close")}</button>
            </div>
        </Dialog>
    );
}

/** Puts right what the server has understood of one's own message. */
export function Correction({ event, onClose }: { event: MatrixEvent; onClose(): void }) {
    const busy = useSignal(false);
    const trouble = useSignal("");
    const known = transcripts.of(event)?.text ?? "";
    async function save(text: string): Promise<void> {
        busy.value = true;
        try {
            await transcripts.correct(event, text.trim());
            onClose();
        } catch (error) {
            trouble.value = problem(error);
            busy.value = false;
        }
    }
    return (
        <Dialog title={t("transcript.correct")} onClose={onClose}>
            <form
                class="dialog-form"
                onSubmit={(e) => {
                    e.preventDefault();
                    void save(String(new FormData(e.currentTarget).get("text") ?? ""));
                }}
            >
                <label>
                    {t("voice.transcript")}
                    <textarea name="text" rows={5} dir="auto" defaultValue={known} autofocus aria-describedby="correction-help" />
                    <small id="correction-help">{t("transcript.correctHelp")}</small>
                </label>
                {trouble.value && (
                    <p class="problem" role="alert">
                        {trouble.value}
                    </p>
                )}
                <div class="buttons end">
                    <button type="button" onClick={onClose}>
                        {t("app.cancel")}
                    </button>
                    {known && (
                        <button type="button" class="danger" disabled={busy.value} onClick={() => void save("")}>
                            {t("transcript.remove")}
                        </button>
                    )}
                    <button class="primary" disabled={busy.value}>
                        {t("app.save")}
                    </button>
                </div>
            </form>
        </Dialog>
    );
}
