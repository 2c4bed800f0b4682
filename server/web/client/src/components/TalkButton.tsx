import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { duration, t } from "../i18n";
import { composing, relation } from "../matrix/composing";
import { outbox } from "../matrix/outbox";
import { LiveSpeech, notice, possible, prepareLive, speaking, want, wanted } from "../voice/live";
import { Recorder } from "../voice/recorder";
import { sendVoice } from "../voice/send";
import { focused } from "./focused";
import { Icon } from "./Icon";

/** Pixels that the finger must travel. */
const cancelAt = 90;
const lockAt = 70;
/** Who has come so far to the left may be about to cancel. */
const hesitatesAt = 15;
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
    const live = useRef<LiveSpeech | undefined>(undefined);
    const longest = useRef(0);
    const button = useRef<HTMLButtonElement>(null);

    useEffect(() => {
        // A mouse tells that it comes near, a finger does not: there the microphone is opened with the room, so that no word is lost.
        if (matchMedia("(hover: none)").matches) prepare();
        return () => {
            if (state.value !== "idle") void cancel();
        };
    }, [room.roomId]);
    const before = useRef(state.value);
    useLayoutEffect(() => {
        if (state.value === "idle" && before.current !== "idle") button.current?.focus(); // it was gone while the recording was locked
        before.current = state.value;
    }, [state.value]);
    const full = speaking.value?.full.value;
    useEffect(() => void (full && state.value !== "idle" && void finish()), [full]);

    function prepare(): void {
        void recorder.prepareIfAllowed();
        if (wanted(room)) prepareLive();
    }

    function begin(mode: "holding" | "locked"): void {
        onProblem("");
        notice.value = { room: "", text: "" };
        state.value = mode;
        onRecording(true);
        const speech = wanted(room) ? new LiveSpeech(room, relation()) : undefined;
        live.current = speech;
        const limit = longestIn(room);
        clearTimeout(longest.current);
        if (limit)
            longest.current = window.setTimeout(() => {
                notice.value = { room: room.roomId, text: t("live.full") };
                void finish();
            }, limit);
        starting.current = recorder.start(speech && ((chunk) => speech.take(chunk))).catch((error: Error) => {
            void speech?.stop();
            speech?.leave();
            onProblem(noMicrophone(error));
            reset();
            throw error;
        });
        starting.current.catch(() => undefined);
    }

    function reset(): void {
        clearTimeout(longest.current);
        state.value = "idle";
        offset.value = { x: 0, y: 0 };
        onRecording(false);
    }

    async function cancel(): Promise<void> {
        const speech = live.current;
        reset();
        await starting.current?.catch(() => undefined);
        await Promise.all([recorder.cancel(), speech && takeBack(speech)]);
    }

    /** Takes back what was said live. What others have heard they have heard. */
    async function takeBack(speech: LiveSpeech, settled = speech.stop()): Promise<void> {
        speech.leave();
        if (!speech.live) return;
        if (speech.live.event) notice.value = { room: room.roomId, text: t("live.takenBack") };
        await outbox.takeBack(speech.live, settled);
    }

    async function finish(): Promise<void> {
        const speech = live.current;
        try {
            await starting.current;
        } catch {
            return; // it has been said already
        }
        reset();
        const settled = speech?.stop(); // before the last part of the recording comes: that goes with the end
        const recording = await recorder.stop();
        if (recording.duration < 300 || recording.blob.size === 0) {
            onProblem(t("voice.tooShort"));
            if (speech) await takeBack(speech, settled);
            return;
        }
        const about = speech ? speech.relation : relation();
        if (composing.value?.mode === "reply") composing.value = null;
        if (!speech) return sendVoice(room, recording, about);
        const off = speech.state.value === "off";
        speech.leave();
        if (speech.full.value) {
            notice.value = { room: room.roomId, text: t("live.full") };
            return; // what was said so far is there
        }
        if (off) notice.value = { room: room.roomId, text: t(speech.live?.event ? "live.sentWhole" : "live.notLive", { reason: speech.problem }) };
        await sendVoice(room, recording, about, off ? { replaces: speech.live?.event } : { live: speech.live, settled });
    }

    function down(e: PointerEvent): void {
        if (e.button !== 0 || state.value !== "idle") return;
        e.preventDefault();
        button.current!.setPointerCapture(e.pointerId);
        start.current = { x: e.clientX, y: e.clientY, at: e.timeStamp };
        begin("holding");
    }

    function move(e: PointerEvent): void {
        if (state.value !== "holding") return;
        offset.value = { x: Math.min(0, e.clientX - start.current.x), y: Math.min(0, e.clientY - start.current.y) };
        live.current?.hesitate(offset.value.x < -hesitatesAt);
        if (offset.value.x < -cancelAt) void cancel();
        else if (offset.value.y < -lockAt) state.value = "locked";
    }

    function up(e: PointerEvent): void {
        if (state.value !== "holding") return;
        // By when it happened: a busy machine may be told of the press and the release at once.
        if (e.timeStamp - start.current.at < tap) state.value = "locked";
        else void finish();
    }

    if (state.value === "locked") {
        return (
            <div class="recorder" role="group" aria-label={t("voice.locked")} onKeyDown={(e) => e.key === "Escape" && void cancel()}>
                <button class="round danger" aria-label={t("voice.discard")} onClick={() => void cancel()}>
                    <Icon name="trash" />
                </button>
                <Level />
                <LiveState />
                <button class="round accent" ref={focused} aria-label={t("voice.sendIt")} onClick={() => void finish()}>
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
                    <LiveState />
                    <span class="slide">{t("voice.slide")}</span>
                </div>
            )}
            {state.value === "idle" && possible(room) && (
                <button
                    class="live-switch"
                    role="switch"
                    aria-checked={wanted(room)}
                    aria-label={t("live.switch")}
                    title={t("live.switch")}
                    onClick={() => want(room, !wanted(room))}
                >
                    <span class="live-mark" /> {t("live.short")}
                </button>
            )}
            <button
                ref={button}
                class={`talk ${state.value}`}
                aria-label={t("voice.hold")}
                title={t("voice.holdHelp")}
                style={{ transform: `translate(${Math.max(-cancelAt, offset.value.x)}px, ${Math.max(-lockAt, offset.value.y)}px)` }}
                onPointerEnter={prepare}
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

/** How long one may speak in a room, in milliseconds; a little less, because the microphone may be open for a little longer. docs/voice.md */
function longestIn(room: Room): number | undefined {
    const limit = Number(room.currentState.getStateEvents("im.parley.voice.limit", "")?.getContent().max_duration);
    return limit > 0 ? Math.max(500, limit - 300) : undefined;
}

/** Whether others hear what one says now. */
function LiveState() {
    const speech = speaking.value;
    if (!speech) return null;
    const state = speech.state.value;
    return (
        <span class={`live-state ${state}`} role="status">
            {state === "on" && <span class="live-mark" />} {state === "soon" ? "…" : t(`live.${state}`)}
        </span>
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
    if (!recorder.running.value)
        return (
            <span class="level opening" role="status">
                {t("voice.opening")}
            </span>
        );
    const time = duration(recorder.elapsed.value);
    return (
        <span class="level" role="timer" aria-label={t("voice.recording", { time })}>
            <span class="level-dot" />
            <span>{time}</span>
            <meter min={0} max={1} value={recorder.level.value} aria-hidden="true" />
        </span>
    );
}
