import { duration, t, time } from "../i18n";
import { outbox, type Outgoing } from "../matrix/outbox";
import { Icon } from "./Icon";
import { Waveform } from "./VoiceMessage";

/** A recording or a file that the server does not have yet. */
export function OutgoingMessage({ item }: { item: Outgoing }) {
    if (!outbox.items.value.includes(item)) return null; // it changes in place
    const audio = item.content["org.matrix.msc1767.audio"] as { duration: number; waveform: number[] } | undefined;
    function save(): void {
        const url = URL.createObjectURL(item.blob);
        Object.assign(document.createElement("a"), { href: url, download: item.name }).click();
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
    }
    return (
        <article class="message mine first outgoing" aria-label={`${t("room.you")}, ${time(item.at)}`}>
            <div class="bubble">
                {audio ? (
                    <div class="voice">
                        <span class="round play waiting">
                            <Icon name="mic" />
                        </span>
                        <div class="voice-track">
                            <Waveform values={audio.waveform.map((n) => n / 1024)} done={0} />
                        </div>
                        <span class="voice-time">{duration(audio.duration)}</span>
                    </div>
                ) : (
                    <p class="file-line">
                        <Icon name="file" /> <span dir="auto">{item.name}</span>
                    </p>
                )}
                {item.state === "sending" ? (
                    <p class="meta" role="status">
                        {t("room.sending")} {item.progress !== undefined && `${Math.round(item.progress * 100)} %`}
                    </p>
                ) : (
                    <div class="outgoing-problem" role="alert">
                        <p class="problem">
                            {t("room.failed")} {item.problem} {item.state === "waiting" && t("outbox.waits")}
                        </p>
                        <div class="buttons">
                            <button class="primary" onClick={() => outbox.retry(item)}>
                                {t("app.retry")}
                            </button>
                            <button onClick={save}>{t("outbox.save")}</button>
                            <button class="danger" onClick={() => outbox.discard(item)}>
                                {t("outbox.discard")}
                            </button>
                        </div>
                    </div>
                )}
            </div>
        </article>
    );
}
