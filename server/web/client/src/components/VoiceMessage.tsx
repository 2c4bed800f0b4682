import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { MatrixEvent } from "matrix-js-sdk";
import { duration, t } from "../i18n";
import { isMine, senderName, shortName, type Voice } from "../matrix/messages";
import { followRevision, me } from "../matrix/session";
import { speaking } from "../voice/live";
import { played } from "../voice/played";
import { player } from "../voice/player";
import { transcripts } from "../voice/transcripts";
import { Icon } from "./Icon";
import { Correction } from "./MessageActions";

/** A voice message: play, its waveform to move in, the time, the speed, what was said. */
export function VoiceMessage({ voice, next }: { voice: Voice; next: (event: MatrixEvent) => MatrixEvent | undefined }) {
    followRevision();
    const { event } = voice;
    const current = player.current.value?.getId() === event.getId();
    const playing = current && player.playing.value;
    const heard = played.isPlayed(event);
    const position = current ? player.position.value : played.position(event);
    const { live } = voice;
    // Of what is still being spoken one can go through what has come.
    const length = live ? (current ? player.available.value : 0) : voice.duration;
    const label = live ? says(event) : t("voice.message", { name: senderName(event), duration: duration(voice.duration) });
    return (
        <div class={live ? "voice live" : "voice"} role="group" aria-label={label}>
            {live && isMine(event) && speaking.value?.live?.event === event.getId() ? (
                <span class="round play waiting">
                    <Icon name="mic" />
                </span>
            ) : (
                <button
                    class="round play"
                    aria-label={playing ? t("voice.pause") : live ? t("live.listen") : t("voice.play")}
                    aria-busy={current && player.loading.value}
                    onClick={() => (playing ? player.pause() : void player.play(event, next))}
                >
                    <Icon name={playing ? "pause" : "play"} />
                </button>
            )}
            <div class="voice-track">
                {live ? <Speaking /> : <Waveform values={voice.waveform} done={voice.duration ? position / voice.duration : 0} />}
                {(!live || current) && (
                    <input
                        type="range"
                        min={0}
                        max={Math.max(1, length)}
                        step={100}
                        value={position}
                        aria-label={t("voice.position")}
                        aria-valuetext={`${duration(position)} / ${duration(length)}`}
                        onInput={(e) => void player.seek(event, e.currentTarget.valueAsNumber)}
                    />
                )}
            </div>
            {(!live || current) && <span class="voice-time">{duration(position > 0 ? position : length)}</span>}
            {current && (
                <button class="speed" aria-label={t("voice.speed", { speed: player.speed.value })} onClick={() => player.nextSpeed()}>
                    {player.speed.value}×
                </button>
            )}
            {!heard && <span class="dot" role="img" aria-label={t("voice.unplayed")} title={t("voice.unplayed")} />}
            {live && (
                <p class="live-line" role="status">
                    <span class="level-dot" /> {says(event)}
                </p>
            )}
            {player.failed.value === event.getId() && (
                <p class="problem" role="alert">
                    {t("voice.failed")}{" "}
                    <button class="link" onClick={() => void player.play(event, next)}>
                        {t("app.retry")}
                    </button>
                </p>
            )}
            {isMine(event) && played.by(event).length > 0 && (
                <p class="played-by">
                    <Icon name="check" /> {t("voice.playedBy", { names: played.by(event).map((user) => nameIn(event, user)).join(", ") })}
                </p>
            )}
            {!live && <Transcript event={event} />}
        </div>
    );
}

/** Who is speaking now. */
function says(event: MatrixEvent): string {
    if (!isMine(event)) return t("live.speaking", { name: senderName(event) });
    const here = speaking.value;
    return here?.live?.event === event.getId() && here?.state.value === "on" ? t("live.heard") : t("live.you");
}

/** Bars that move while somebody speaks. */
function Speaking() {
    return (
        <svg class="waveform speaking" viewBox="0 0 96 32" preserveAspectRatio="none" aria-hidden="true">
            {Array.from({ length: 16 }, (_, i) => (
                <rect x={i * 6 + 1.5} y={2} width={3} height={28} rx={1.5} />
            ))}
        </svg>
    );
}

function nameIn(event: MatrixEvent, user: string): string {
    return shortName(me().getRoom(event.getRoomId())?.getMember(user)?.name ?? user);
}

/** Longer texts are shown in part. Characters. */
const excerpt = 240;

/** What was said, or that it is being written down. */
function Transcript({ event }: { event: MatrixEvent }) {
    followRevision();
    const whole = useSignal(false);
    const correcting = useSignal(false);
    useEffect(() => transcripts.want(event), [event.getId(), event.status]);
    const known = transcripts.of(event);
    if (!known) return transcripts.isPending(event) ? <p class="transcript faint">{t("transcript.pending")}</p> : null;
    if (!known.text) return <p class="transcript faint">{t("transcript.nothing")}</p>;
    const long = known.text.length > excerpt;
    const text = long && !whole.value ? `${known.text.slice(0, excerpt - 20).replace(/\s+\S*$/, "")} …` : known.text;
    return (
        <div class="transcript" role="group" aria-label={t("voice.transcript")}>
            <p class="text" lang={known.language} dir="auto">
                {text}
            </p>
            <p class="transcript-tools">
                {known.corrected && <span>{t("transcript.corrected")}</span>}
                {long && (
                    <button class="link" aria-expanded={whole.value} onClick={() => (whole.value = !whole.value)}>
                        {whole.value ? t("transcript.less") : t("transcript.more")}
                    </button>
                )}
                {isMine(event) && (
                    <button class="link" onClick={() => (correcting.value = true)}>
                        {t("transcript.correct")}
                    </button>
                )}
            </p>
            {correcting.value && <Correction event={event} onClose={() => (correcting.value = false)} />}
        </div>
    );
}

/** Bars; those already heard are filled. */
export function Waveform({ values, done }: { values: number[]; done: number }) {
    const bars = 48;
    const heights = Array.from({ length: bars }, (_, i) => {
        if (values.length === 0) return 0.12;
        const from = Math.floor((i * values.length) / bars);
        const to = Math.max(from + 1, Math.floor(((i + 1) * values.length) / bars));
        return Math.max(0.08, ...values.slice(from, to));
    });
    return (
        <svg class="waveform" viewBox={`0 0 ${bars * 4} 32`} preserveAspectRatio="none" aria-hidden="true">
            {heights.map((h, i) => (
                <rect class={i / bars < done ? "heard" : ""} x={i * 4 + 0.5} y={16 - h * 15} width={2.6} height={h * 30} rx={1.3} />
            ))}
        </svg>
    );
}
