import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { t } from "../i18n";
import { composing, edit, relation } from "../matrix/composing";
import { bodyOf, senderName, summary } from "../matrix/messages";
import { outbox } from "../matrix/outbox";
import { problem as sentence } from "../matrix/problem";
import { me } from "../matrix/session";
import { notice, wanted } from "../voice/live";
import { Icon } from "./Icon";
import { TalkButton } from "./TalkButton";

/** How often others are told that one types. Milliseconds. */
const typingEvery = 5_000;
/** What was typed and not sent, for each room. */
const drafts = new Map<string, string>();

/** Where one speaks, writes and attaches. */
export function Composer({ room }: { room: Room }) {
    const text = useSignal(drafts.get(room.roomId) ?? "");
    const problem = useSignal("");
    const recording = useSignal(false);
    const input = useRef<HTMLTextAreaElement>(null);
    const picker = useRef<HTMLInputElement>(null);
    const typing = useRef(0);
    const about = composing.value;
    const maySend = room.maySendMessage();

    // Before anything is painted: what is typed as soon as the room is seen shall not be lost.
    useLayoutEffect(() => {
        // A phone would cover half of the messages with its keyboard.
        if (matchMedia("(hover: hover)").matches) input.current?.focus();
    }, []);
    useLayoutEffect(() => {
        if (about?.mode === "edit") text.value = bodyOf(about.event);
        if (about) input.current?.focus();
    }, [about]);
    useEffect(() => () => void drafts.set(room.roomId, text.value), []);

    function stopComposing(): void {
        if (about?.mode === "edit") text.value = "";
        composing.value = null;
        input.current?.focus();
    }

    function tellTyping(): void {
        const now = text.value !== "";
        if (now && Date.now() - typing.current < typingEvery) return;
        typing.current = now ? Date.now() : 0;
        void me().sendTyping(room.roomId, now, 20_000).catch(() => undefined);
    }

    function send(): void {
        const body = text.value.trim();
        if (!body) return;
        const about = composing.value;
        text.value = "";
        problem.value = "";
        input.current?.focus();
        const sending = about?.mode === "edit" ? edit(about.event, body) : me().sendMessage(room.roomId, { msgtype: "m.text", body, ...relation() } as any);
        composing.value = null;
        tellTyping();
        // A message that fails says so itself; an edit has no place to.
        sending.catch((error) => {
            if (about?.mode !== "edit") return;
            problem.value = sentence(error);
            text.value = body;
            composing.value = about;
        });
    }

    async function attach(file: File): Promise<void> {
        problem.value = "";
        try {
            const limit = (await me().getMediaConfig())["m.upload.size"];
            if (limit && file.size > limit) {
                problem.value = t("composer.tooLarge", { limit: `${Math.floor(limit / 1048576)} MB` });
                return;
            }
        } catch (error) {
            console.warn("the limit is not known", error); // the upload will tell
        }
        const kind = /^(image|video|audio)\//.exec(file.type)?.[1] ?? "file";
        const info: Record<string, unknown> = { mimetype: file.type, size: file.size, ...(kind === "image" ? await pictureSize(file) : {}) };
        const content = { msgtype: `m.${kind}`, body: file.name, filename: file.name, info, ...relation() };
        composing.value = null;
        await outbox.send(room, file, file.name, content);
    }

    if (!maySend) return <footer class="composer hint centre">{t("composer.notAllowed")}</footer>;
    return (
        <footer class={`composer ${recording.value ? "recording" : ""}`}>
            {problem.value && (
                <p class="problem" role="alert">
                    {problem.value}
                </p>
            )}
            <p class="live-notice hint" role="status">
                {notice.value.room === room.roomId && notice.value.text ? notice.value.text : wanted(room) && !recording.value && !text.value.trim() ? t("live.switch") : ""}
            </p>
            {about && (
                <div class="about">
                    <Icon name={about.mode === "edit" ? "edit" : "reply"} />
                    <span class="row-text">
                        <strong>{about.mode === "edit" ? t("composer.editing") : t("composer.replying", { name: senderName(about.event) })}</strong>
                        <span dir="auto">{summary(about.event)}</span>
                    </span>
                    <button class="round small" aria-label={t("app.cancel")} onClick={stopComposing}>
                        <Icon name="close" />
                    </button>
                </div>
            )}
            <div class="composer-row">
                {!recording.value && (
                    <>
                        <button class="round" aria-label={t("composer.attach")} title={t("composer.attach")} onClick={() => picker.current!.click()}>
                            <Icon name="attach" />
                        </button>
                        <input
                            ref={picker}
                            type="file"
                            hidden
                            onChange={(e) => {
                                const file = e.currentTarget.files?.[0];
                                if (file) void attach(file);
                                e.currentTarget.value = "";
                            }}
                        />
                        <textarea
                            ref={input}
                            rows={1}
                            dir="auto"
                            placeholder={t("composer.placeholder")}
                            aria-label={t("composer.placeholder")}
                            value={text.value}
                            onInput={(e) => {
                                text.value = e.currentTarget.value;
                                tellTyping();
                            }}
                            onPaste={(e) => {
                                const file = e.clipboardData?.files[0];
                                if (!file) return;
                                e.preventDefault();
                                void attach(file);
                            }}
                            onKeyDown={(e) => {
                                if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
                                    e.preventDefault();
                                    send();
                                }
                                if (e.key === "Escape" && about) stopComposing();
                            }}
                        />
                    </>
                )}
                {text.value.trim() ? (
                    <button class="round accent" aria-label={t("composer.send")} onClick={send}>
                        <Icon name="send" />
                    </button>
                ) : (
                    <TalkButton room={room} onRecording={(on) => (recording.value = on)} onProblem={(what) => (problem.value = what)} />
                )}
            </div>
        </footer>
    );
}

async function pictureSize(file: File): Promise<{ w: number; h: number } | undefined> {
    try {
        const bitmap = await createImageBitmap(file);
        return { w: bitmap.width, h: bitmap.height };
    } catch {
        return undefined; // not a picture that this browser knows
    }
}
