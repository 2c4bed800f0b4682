import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { MatrixEvent } from "matrix-js-sdk";
import { duration, t, time } from "../i18n";
import { download } from "../matrix/attachments";
import { composing, react, reactionsTo } from "../matrix/composing";
import { bodyOf, senderName, shortName, summary, voiceOf } from "../matrix/messages";
import { problem } from "../matrix/problem";
import { followRevision, me } from "../matrix/session";
import { href } from "../route";
import { completed } from "../voice/live";
import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { MessageActions } from "./MessageActions";
import { VoiceMessage } from "./VoiceMessage";

interface Props {
    event: MatrixEvent;
    /** Whether it begins a run of messages of one person. */
    first: boolean;
    mine: boolean;
    next: (event: MatrixEvent) => MatrixEvent | undefined;
}

/** One message, or a line about what happened in the room. */
export function Message({ event, first, mine, next }: Props) {
    followRevision();
    const acting = useSignal(false);
    if (event.isState()) return <p class="notice">{describe(event)}</p>;
    const name = senderName(event);
    const settled = !event.status && !event.isRedacted();
    return (
        <article
            class={`message ${mine ? "mine" : "theirs"} ${first ? "first" : ""}`}
            aria-label={`${name}, ${time(event.getTs())}`}
            tabIndex={-1}
            onKeyDown={(e) => {
                if (e.key !== "Enter" || e.target !== e.currentTarget || !settled) return;
                e.preventDefault();
                acting.value = true;
            }}
        >
            {!mine && (first ? <Avatar name={name} id={event.getSender() ?? ""} /> : <span class="avatar-space" />)}
            <div class="bubble">
                {first && !mine && (
                    <p class="sender" dir="auto">
                        {name}
                    </p>
                )}
                <Quotation event={event} />
                <Body event={event} next={next} />
                <p class="meta">
                    {event.threadRootId && <span>{t("room.inThread")} · </span>}
                    {event.replacingEvent() && !completed(event) && <span>{t("room.edited")} · </span>}
                    {event.status === "not_sent" ? (
                        <Failed event={event} />
                    ) : event.status && event.status !== "sent" ? (
                        <span role="status">{t("room.sending")}</span>
                    ) : (
                        <time>{time(event.getTs())}</time>
                    )}
                </p>
                <Reactions event={event} />
            </div>
            {settled && (
                <span class="reveal">
                    <button class="round small" aria-label={t("actions.reply")} title={t("actions.reply")} onClick={() => (composing.value = { mode: "reply", event })}>
                        <Icon name="reply" />
                    </button>
                    <button class="round small" aria-label={t("actions.more")} title={t("actions.more")} aria-haspopup="dialog" onClick={() => (acting.value = true)}>
                        <Icon name="more" />
                    </button>
                </span>
            )}
            {acting.value && <MessageActions event={event} mine={mine} onClose={() => (acting.value = false)} />}
        </article>
    );
}

/** What a message answers to. */
function Quotation({ event }: { event: MatrixEvent }) {
    followRevision();
    const id = event.isRedacted() || event.getWireContent()["m.relates_to"]?.is_falling_back ? undefined : event.replyEventId;
    if (!id) return null;
    const original = me().getRoom(event.getRoomId())?.findEventById(id);
    return (
        <a class="quotation" href={href({ page: "room", room: event.getRoomId()!, event: id })}>
            {original ? (
                <>
                    <strong dir="auto">{senderName(original)}</strong>
                    <span dir="auto">{summary(original)}</span>
                </>
            ) : (
                <span>{t("room.earlierMessage")}</span>
            )}
        </a>
    );
}

function Reactions({ event }: { event: MatrixEvent }) {
    followRevision();
    const reactions = event.isRedacted() ? [] : reactionsTo(event);
    if (reactions.length === 0) return null;
    return (
        <ul class="reactions">
            {reactions.map(({ key, count, mine, who }) => (
                <li key={key}>
                    <button aria-pressed={!!mine} title={who.map(shortName).join(", ")} onClick={() => void react(event, key).catch((error) => console.warn("react", error))}>
                        {key} {count > 1 && count}
                    </button>
                </li>
            ))}
        </ul>
    );
}

function Failed({ event }: { event: MatrixEvent }) {
    const room = me().getRoom(event.getRoomId())!;
    return (
        <span class="problem" role="alert">
            {t("room.failed")} {event.error && problem(event.error)}{" "}
            <button class="link" onClick={() => void me().resendEvent(event, room).catch(() => undefined)}>
                {t("app.retry")}
            </button>
            <button class="link" onClick={() => me().cancelPendingEvent(event)}>
                {t("outbox.discard")}
            </button>
        </span>
    );
}

function Body({ event, next }: Pick<Props, "event" | "next">) {
    followRevision();
    if (event.isRedacted()) return <p class="faint">{t("room.redacted")}</p>;
    if (event.isBeingDecrypted()) return <p class="faint">…</p>;
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
                <p class="text" dir="auto">
                    * {senderName(event)} {content.body}
                </p>
            );
        default:
            return (
                <p class="text" dir="auto">
                    {linked(bodyOf(event))}
                </p>
            );
    }
}

/** Text with its links as links. Nothing of it is ever taken for HTML. */
function linked(text: string) {
    return text.split(/(https?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]])/).map((part, i) =>
        i % 2 ? (
            <a href={part} target="_blank" rel="noopener noreferrer">
                {part}
            </a>
        ) : (
            part
        ),
    );
}

/** The caption of a file, if it has one. Spec v1.19 client-server-api/#media-captions */
function caption(event: MatrixEvent): string {
    const { filename, body } = event.getContent();
    return filename && body !== filename ? String(body) : "";
}

function Picture({ event }: { event: MatrixEvent }) {
    const url = useSignal("");
    const failed = useSignal(false);
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
            (error) => {
                console.warn("picture", error);
                failed.value = true;
            },
        );
        return () => {
            gone = true;
            URL.revokeObjectURL(mine);
        };
    }, [content.url ?? content.file?.url]);
    const ratio = content.info?.w && content.info?.h ? Math.min(5, Math.max(0.4, content.info.w / content.info.h)) : 4 / 3;
    const width = Math.min(320, Math.max(80, Number(content.info?.w) || 320), 360 * ratio);
    const name = String(content.filename ?? content.body ?? "");
    return (
        <>
            {failed.value ? (
                <p class="faint">{t("room.pictureFailed", { name })}</p>
            ) : (
                <img class="picture" src={url.value || undefined} alt={name} width={Math.round(width)} height={Math.round(width / ratio)} />
            )}
            {caption(event) && (
                <p class="text" dir="auto">
                    {linked(caption(event))}
                </p>
            )}
        </>
    );
}

function Attachment({ event }: { event: MatrixEvent }) {
    const content = event.getContent();
    const trouble = useSignal("");
    const name = String(content.filename ?? content.body ?? "file");
    const size = Number(content.info?.size) || 0;
    async function save(): Promise<void> {
        trouble.value = "";
        try {
            const blob = await download(me(), content, "application/octet-stream");
            const url = URL.createObjectURL(new Blob([blob], { type: "application/octet-stream" }));
            Object.assign(document.createElement("a"), { href: url, download: name }).click();
            setTimeout(() => URL.revokeObjectURL(url), 60_000);
        } catch (error) {
            trouble.value = problem(error);
        }
    }
    return (
        <>
            <button class="file" onClick={() => void save()} title={t("room.saveFile")}>
                <Icon name="file" />
                <span dir="auto">{name}</span>
                {size > 0 && <small>{readable(size)}</small>}
            </button>
            {trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
            {caption(event) && (
                <p class="text" dir="auto">
                    {linked(caption(event))}
                </p>
            )}
        </>
    );
}

function readable(bytes: number): string {
    return bytes < 1_000_000 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1_000_000).toFixed(1)} MB`;
}

function describe(event: MatrixEvent): string {
    const content = event.getContent();
    const name = shortName(content.displayname ?? event.getStateKey() ?? "");
    const before = event.getPrevContent();
    if (event.getType() === "m.room.member") {
        switch (content.membership) {
            case "join":
                if (before.membership !== "join") return t("room.joined", { name });
                return t("room.renamed", { name: shortName(before.displayname ?? event.getStateKey() ?? ""), now: name });
            case "invite":
                return t("room.invited", { name });
            case "leave":
            case "ban":
                return t(before.membership === "invite" ? "room.declined" : "room.left", { name: shortName(before.displayname ?? event.getStateKey() ?? "") });
        }
    }
    if (event.getType() === "m.room.encryption") return t("room.encrypted");
    if (event.getType() === "m.room.name") return t("room.named", { name: senderName(event), now: String(content.name ?? "") });
    if (event.getType() === "im.parley.voice.limit") {
        const limit = Number(content.max_duration);
        const name = senderName(event);
        return limit > 0 ? t("room.limited", { name, time: duration(limit) }) : t("room.unlimited", { name });
    }
    return t("room.changed", { name: senderName(event) });
}
