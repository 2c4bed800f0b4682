import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { duration, t } from "../i18n";
import { composing, relation } from "../matrix/composing";
import { sendVoice } from "../voice/send";
import { Recorder } from "../voice/recorder";
import { Icon } from "./Icon";

/** Pixels that the finger must travel. */
const cancelAt = 90;
const lockAt = 70;
/** A press shorter than this was a tap: it locks instead of sending a click. Milliseconds. */
const tap = 350;

interface Props {
    room: Room;
    onRecording(on: boolean): void;
    onProblem(what: string): void;
}

const recorder = new Recorder(); // one microphone for the whole page

/** Hold to talk and let go to send; slide left to cancel, up to lock; a tap locks at once. */
export function TalkButton({ room, onRecording, onProblem }: Props) {
    const state = useSignal<"idle" | "holding" | "locked">("idle");
    const offset = useSignal({ x: 0, y: 0 });
    const start = useRef({ x: 0, y: 0, at: 0 });
    const starting = useRef<Promise<void> | undefined>(undefined);
    const button = useRef<HTMLButtonElement>(null);

    useEffect(() => {
        // A mouse tells that it comes near, a finger does not: there the microphone is opened with the room, so that no word is lost.
        if (matchMedia("(hover: none)").matches) void recorder.prepareIfAllowed();
        return () => void recorder.cancel();
    }, [room.roomId]);

    function begin(mode: "holding" | "locked"): void {
        onProblem("");
        state.value = mode;
        onRecording(true);
        starting.current = recorder.start().catch((error: Error) => {
            onProblem(noMicrophone(error));
            reset();
            throw error;
        });
        starting.current.catch(() => undefined);
    }

    function reset(): void {
        state.value = "idle";
        offset.value = { x: 0, y: 0 };
        onRecording(false);
        button.current?.focus();
    }

    async function cancel(): Promise<void> {
        reset();
        await starting.current?.catch(() => undefined);
        await recorder.cancel();
    }

    async function finish(): Promise<void> {
        try {
            await starting.current;
        } catch {
            return; // it has been said already
        }
        reset();
        const recording = await recorder.stop();
        if (recording.duration < 300 || recording.blob.size === 0) {
            onProblem(t("voice.tooShort"));
            return;
        }
        const about = relation();
        if (composing.value?.mode === "reply") composing.value = null;
        await sendVoice(room, recording, about);
    }

    function down(e: PointerEvent): void {
        if (e.button !== 0 || state.value !== "idle") return;
        e.preventDefault();
        button.current!.setPointerCapture(e.pointerId);
        start.current = { x: e.clientX, y: e.clientY, at: performance.now() };
        begin("holding");
    }

    function move(e: PointerEvent): void {
        if (state.value !== "holding") return;
        offset.value = { x: Math.min(0, e.clientX - start.current.x), y: Math.min(0, e.clientY - start.current.y) };
        if (offset.value.x < -cancelAt) void cancel();
        else if (offset.value.y < -lockAt) state.value = "locked";
    }

    function up(): void {
        if (state.value !== "holding") return;
        if (performance.now() - start.current.at < tap) state.value = "locked";
        else void finish();
    }

    if (state.value === "locked") {
        return (
            <div class="recorder" role="group" aria-label={t("voice.locked")}>
                <button class="round danger" aria-label={t("voice.discard")} onClick={() => void cancel()}>
                    <Icon name="trash" />
                </button>
                <Level />
                <button class="round accent" autofocus aria-label={t("voice.sendIt")} onClick={() => void finish()}>
                    <Icon name="send" />
                </button>
            </div>
        );
    }
    return (
        <>
            {state.value === "holding" && (
                <div class="recorder">
                    <Level />
                    <span class="slide">{t("voice.slide")}</span>
                </div>
            )}
            <button
                ref={button}
                class={`talk ${state.value}`}
                aria-label={t("voice.hold")}
                title={t("voice.holdHelp")}
                style={{ transform: `translate(${Math.max(-cancelAt, offset.value.x)}px, ${Math.max(-lockAt, offset.value.y)}px)` }}
                onPointerEnter={() => void recorder.prepareIfAllowed()}
                onPointerDown={down}
                onPointerMove={move}
                onPointerUp={up}
                onPointerCancel={() => void cancel()}
                onContextMenu={(e) => e.preventDefault()}
                onKeyDown={(e) => {
                    if (e.key === "Enter" || e.key === " ") {
                        e.preventDefault();
                        if (!e.repeat && state.value === "idle") begin("locked");
                    }
                }}
            >
                <Icon name="mic" />
            </button>
        </>
    );
}

/** Why one cannot speak, and what can be done about it. */
function noMicrophone(error: Error): string {
    if (!navigator.mediaDevices) return t("voice.insecure");
    switch (error.name) {
        case "NotAllowedError":
            return t("voice.refused");
        case "NotFoundError":
            return t("voice.noneFound");
        case "NotReadableError":
            return t("voice.inUse");
    }
    return t("voice.noMicrophone", { reason: error.message });
}

/** Time and loudness while one speaks. */
function Level() {
    const time = duration(recorder.elapsed.value);
    return (
        <span class="level" role="timer" aria-label={t("voice.recording", { time })}>
            <span class="level-dot" />
            <span>{time}</span>
            <meter min={0} max={1} value={recorder.level.value} aria-hidden="true" />
        </span>
    );
}
