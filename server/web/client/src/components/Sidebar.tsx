import { useSignal } from "@preact/signals";
import type { Room } from "matrix-js-sdk";
import { duration, shortTime, t } from "../i18n";
import { bodyOf, invitations, joinedRooms, lastMessage, senderName, summary, voiceOf, isMine } from "../matrix/messages";
import { followRevision, me } from "../matrix/session";
import { askable, putOff, want } from "../notifications";
import { href, route } from "../route";
import { played } from "../voice/played";
import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { Invitation } from "./Invitation";

/** The list of conversations, with the ways to everything else. */
export function Sidebar() {
    followRevision();
    const filter = useSignal("");
    const invites = invitations();
    const rooms = joinedRooms().filter((room) => room.name.toLowerCase().includes(filter.value.toLowerCase()));
    const unheard = played.inbox.value.total;
    return (
        <nav class="sidebar" aria-label={t("rooms.title")}>
            <header>
                <h1>{t("rooms.title")}</h1>
                <a class="round" href={href({ page: "search" })} aria-label={t("search.title")} title={t("search.title")}>
                    <Icon name="search" />
                </a>
                <a class="round" href={href({ page: "settings" })} aria-label={t("settings.title")} title={t("settings.title")}>
                    <Icon name="settings" />
                </a>
                <a class="round accent" href={href({ page: "new" })} aria-label={t("rooms.new")} title={t("rooms.new")}>
                    <Icon name="plus" />
                </a>
            </header>
            <a class={`row inbox-row ${route.value.page === "inbox" ? "current" : ""}`} href={href({ page: "inbox" })}>
                <span class="avatar avatar-inbox">
                    <Icon name="inbox" />
                </span>
                <span class="row-text">
                    <strong>{t("inbox.title")}</strong>
                    <span>{unheard ? t("inbox.count", { count: unheard }) : t("inbox.empty")}</span>
                </span>
                {unheard > 0 && <span class="dot" aria-hidden="true" />}
            </a>
            <input
                class="filter"
                type="search"
                placeholder={t("rooms.search")}
                aria-label={t("rooms.search")}
                value={filter.value}
                onInput={(e) => (filter.value = e.currentTarget.value)}
            />
            {rooms.length > 0 && <NotificationOffer />}
            <div class="rows">
                {invites.length > 0 && <h2>{t("rooms.invites")}</h2>}
                {invites.map((room) => (
                    <Invitation key={room.roomId} room={room} />
                ))}
                {rooms.map((room) => (
                    <RoomRow key={room.roomId} room={room} />
                ))}
                {rooms.length === 0 && invites.length === 0 && (
                    <div class="empty">
                        <p>{filter.value ? t("rooms.nothingFound") : t("rooms.empty")}</p>
                        {!filter.value && <p class="hint">{t("rooms.emptyHelp")}</p>}
                        {!filter.value && (
                            <p class="hint">
                                {t("rooms.yourAddress")} <code>{me().getUserId()}</code>
                            </p>
                        )}
                        {!filter.value && (
                            <a class="button primary" href={href({ page: "new" })}>
                                {t("rooms.new")}
                            </a>
                        )}
                    </div>
                )}
            </div>
        </nav>
    );
}

function RoomRow({ room }: { room: Room }) {
    followRevision();
    const last = lastMessage(room);
    const unread = room.getUnreadNotificationCount();
    const current = route.value.page === "room" && route.value.room === room.roomId;
    return (
        <a class={`row ${current ? "current" : ""}`} href={href({ page: "room", room: room.roomId })} aria-current={current ? "page" : undefined}>
            <Avatar name={room.name} id={room.roomId} />
            <span class="row-text">
                <strong dir="auto">
                    {room.hasEncryptionStateEvent() && (
                        <span class="encrypted" title={t("room.encrypted")}>
                            <Icon name="lock" />
                            <span class="visually-hidden">{t("room.encrypted")}: </span>
                        </span>
                    )}
                    {room.name}
                </strong>
                <span dir="auto">{last ? preview(last) : t("rooms.noMessages")}</span>
            </span>
            <span class="row-side">
                {last && <time>{shortTime(last.getTs())}</time>}
                {unread > 0 && (
                    <span class="badge" aria-label={t("rooms.unread", { count: unread })}>
                        {unread}
                    </span>
                )}
            </span>
        </a>
    );
}

function preview(event: ReturnType<typeof lastMessage> & {}): string {
    const voice = voiceOf(event);
    const who = isMine(event) ? t("room.you") : senderName(event);
    if (event.isRedacted()) return t("room.redacted");
    if (event.isDecryptionFailure()) return `${who}: …`;
    if (voice?.live) return summary(event);
    if (voice) return `${who}: ▶ ${duration(voice.duration)}`;
    return `${who}: ${bodyOf(event) || "…"}`;
}

/** Asks about notifications once there is something to be notified of. */
function NotificationOffer() {
    if (!askable.value) return null;
    return (
        <div class="offer" role="group" aria-label={t("settings.notifications")}>
            <p>
                <Icon name="bell" /> {t("notifications.offer")}
            </p>
            <span class="buttons">
                <button class="primary" onClick={() => void want(true)}>
                    {t("notifications.yes")}
                </button>
                <button onClick={putOff}>{t("notifications.later")}</button>
            </span>
        </div>
    );
}
