import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { MatrixEvent } from "matrix-js-sdk";
import { t, time } from "../i18n";
import { download } from "../matrix/attachments";
import { senderName, voiceOf } from "../matrix/messages";
import { followRevision, me } from "../matrix/session";
import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { VoiceMessage } from "./VoiceMessage";

interface Props {
    event: MatrixEvent;
    /** Whether it begins a run of messages of one person. */
    first: boolean;
    mine: boolean;
    next: (event: MatrixEvent) => MatrixEvent | undefined;
}

export function Message({ event, first, mine, next }: Props) {
    followRevision();
    if (event.isState()) return <p class="notice">{describe(event)}</p>;
    const name = senderName(event);
    return (
        <article class={`message ${mine ? "mine" : "theirs"} ${first ? "first" : ""}`} aria-label={`${name}, ${time(event.getTs())}`}>
            {!mine && (first ? <Avatar name={name} id={event.getSender() ?? ""} /> : <span class="avatar-space" />)}
            <div class="bubble">
                {first && !mine && <p class="sender">{name}</p>}
                <Body event={event} next={next} />
                <p class="meta">
                    {event.replacingEvent() && <span>{t("room.edited")} · </span>}
                    {event.status === "not_sent" ? (
                        <Failed event={event} />
                    ) : event.status && event.status !== "sent" ? (
                        <span role="status">{t("room.sending")}</span>
                    ) : (
                        <time>{time(event.getTs())}</time>
                    )}
                </p>
            </div>
            {mine && !event.status && !event.isRedacted() && (
                <button class="round small reveal" aria-label={t("room.delete")} title={t("room.delete")} onClick={() => void me().redactEvent(event.getRoomId()!, event.getId()!)}>
                    <Icon name="trash" />
                </button>
            )}
        </article>
    );
}

function Failed({ event }: { event: MatrixEvent }) {
    const room = me().getRoom(event.getRoomId())!;
    return (
        <span class="problem" role="alert">
            {t("room.failed")}{" "}
            <button class="link" onClick={() => void me().resendEvent(event, room)}>
                {t("app.retry")}
            </button>
        </span>
    );
}

function Body({ event, next }: Pick<Props, "event" | "next">) {
    followRevision();
    if (event.isRedacted()) return <p class="faint">{t("room.redacted")}</p>;
    if (event.isDecryptionFailure() || (event.isEncrypted() && event.getType() === "m.room.encrypted")) {
        return <p class="faint">{t("room.unknownEncrypted")}</p>;
    }
    const voice = voiceOf(event);
    if (voice) return <VoiceMessage voice={voice} next={next} />;
    const content = event.getContent();
    switch (content.msgtype) {
        case "m.image":
            return <Picture event={event} />;
        case "m.file":
        case "m.video":
        case "m.audio":
            return <Attachment event={event} />;
        case "m.emote":
            return (
                <p class="text">
                    * {senderName(event)} {content.body}
                </p>
            );
        default:
            return <p class="text">{linked(String(content.body ?? ""))}</p>;
    }
}

/** Text with its links as links. Nothing of it is ever taken for HTML. */
function linked(text: string) {
    return text
        .split(/(https?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]])/)
        .map((part, i) => (i % 2 ? <a href={part} target="_blank" rel="noopener noreferrer">{part}</a> : part));
}

function Picture({ event }: { event: MatrixEvent }) {
    const url = useSignal("");
    const content = event.getContent();
    useEffect(() => {
        let mine = "";
        let gone = false;
        const type = String(content.info?.mimetype ?? "");
        const safe = /^image\/(png|jpeg|gif|webp|avif)$/.test(type) ? type : "image/png"; // SVG could carry script
        download(me(), content, safe).then(
            (blob) => {
                if (!gone) url.value = mine = URL.createObjectURL(new Blob([blob], { type: safe }));
            },
            (error) => console.warn("picture", error),
        );
        return () => {
            gone = true;
            URL.revokeObjectURL(mine);
        };
    }, [content.url ?? content.file?.url]);
    const ratio = content.info?.w && content.info?.h ? content.info.w / content.info.h : 4 / 3;
    return <img class="picture" src={url.value || undefined} alt={String(content.body ?? "")} width={320} height={Math.round(320 / ratio)} />;
}

function Attachment({ event }: { event: MatrixEvent }) {
    const content = event.getContent();
    const name = String(content.filename ?? content.body ?? "file");
    async function save(): Promise<void> {
        const blob = await download(me(), content, "application/octet-stream");
        const url = URL.createObjectURL(new Blob([blob], { type: "application/octet-stream" }));
        const link = Object.assign(document.createElement("a"), { href: url, download: name });
        link.click();
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
    }
    return (
        <button class="file" onClick={() => void save()}>
            <Icon name="attach" /> {name}
        </button>
    );
}

function describe(event: MatrixEvent): string {
    const content = event.getContent();
    const name = content.displayname ?? event.getStateKey() ?? "";
    if (event.getType() === "m.room.member") {
        switch (content.membership) {
            case "join":
                return t("room.joined", { name });
            case "invite":
                return t("room.invited", { name });
            case "leave":
            case "ban":
                return t("room.left", { name: event.getPrevContent().displayname ?? name });
        }
    }
    if (event.getType() === "m.room.encryption") return t("room.encrypted");
    return t("room.changed", { name: senderName(event) });
}
