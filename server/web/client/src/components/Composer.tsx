import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { t } from "../i18n";
import { upload } from "../matrix/attachments";
import { me } from "../matrix/session";
import { Icon } from "./Icon";
import { TalkButton } from "./TalkButton";

/** Where one speaks, writes and attaches. */
export function Composer({ room }: { room: Room }) {
    const text = useSignal("");
    const problem = useSignal("");
    const recording = useSignal(false);
    const input = useRef<HTMLTextAreaElement>(null);
    const picker = useRef<HTMLInputElement>(null);

    function send(): void {
        const body = text.value.trim();
        if (!body) return;
        text.value = "";
        input.current?.focus();
        // What fails is shown with the message itself.
        me().sendMessage(room.roomId, { msgtype: "m.text", body, "m.mentions": {} } as any).catch(() => undefined);
        void me().sendTyping(room.roomId, false, 0).catch(() => undefined);
    }

    async function attach(file: File): Promise<void> {
        problem.value = "";
        try {
            const limit = (await me().getMediaConfig())["m.upload.size"];
            if (limit && file.size > limit) {
                problem.value = t("composer.tooLarge", { limit: `${Math.floor(limit / 1048576)} MB` });
                return;
            }
            const reference = await upload(me(), file, file.name, room.hasEncryptionStateEvent());
            const kind = /^(image|video|audio)\//.exec(file.type)?.[1] ?? "file";
            const info: Record<string, unknown> = { mimetype: file.type, size: file.size, ...(kind === "image" ? await pictureSize(file) : {}) };
            await me().sendMessage(room.roomId, { msgtype: `m.${kind}`, body: file.name, filename: file.name, info, ...reference, "m.mentions": {} } as any);
        } catch (error: any) {
            problem.value = error.data?.error ?? error.message;
        }
    }

    return (
        <footer class={`composer ${recording.value ? "recording" : ""}`}>
            {problem.value && (
                <p class="problem" role="alert">
                    {problem.value}
                </p>
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
                            placeholder={t("composer.placeholder")}
                            aria-label={t("composer.placeholder")}
                            value={text.value}
                            onInput={(e) => {
                                text.value = e.currentTarget.value;
                                void me().sendTyping(room.roomId, text.value !== "", 20_000).catch(() => undefined);
                            }}
                            onKeyDown={(e) => {
                                if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
                                    e.preventDefault();
                                    send();
                                }
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
