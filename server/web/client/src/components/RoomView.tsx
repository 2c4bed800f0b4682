import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { MatrixEvent, Room } from "matrix-js-sdk";
import { day, t } from "../i18n";
import { isMine, shownEvents, voiceOf } from "../matrix/messages";
import { me, followRevision } from "../matrix/session";
import { go, href } from "../route";
import { played } from "../voice/played";
import { Avatar } from "./Avatar";
import { Composer } from "./Composer";
import { Icon } from "./Icon";
import { Message } from "./Message";
import { PeoplePicker } from "./PeoplePicker";

/** One conversation. */
export function RoomView({ roomId, eventId }: { roomId: string; eventId?: string }) {
    followRevision();
    const room = me().getRoom(roomId);
    const details = useSignal(false);
    if (!room || room.getMyMembership() !== "join") {
        return (
            <div class="empty">
                <p>{t("rooms.select")}</p>
                <a class="button" href={href({ page: "none" })}>
                    {t("app.back")}
                </a>
            </div>
        );
    }
    return (
        <>
            <header class="page-header">
                <a class="round back" href={href({ page: "none" })} aria-label={t("app.back")}>
                    <Icon name="back" />
                </a>
                <Avatar name={room.name} id={room.roomId} />
                <div class="page-title">
                    <h1>{room.name}</h1>
                    <p>
                        {room.hasEncryptionStateEvent() && (
                            <span class="encrypted" title={t("room.encrypted")}>
                                <Icon name="lock" />
                                <span class="visually-hidden">{t("room.encrypted")}</span>
                            </span>
                        )}
                        <Typing room={room} /> {t("room.members", { count: room.getJoinedMemberCount() })}
                    </p>
                </div>
                <button class="round" aria-label={t("room.info")} title={t("room.info")} aria-expanded={details.value} onClick={() => (details.value = !details.value)}>
                    <Icon name="people" />
                </button>
            </header>
            {details.value && <Details room={room} />}
            <Timeline room={room} eventId={eventId} />
            <Composer room={room} />
        </>
    );
}

function Typing({ room }: { room: Room }) {
    followRevision();
    const names = room
        .getMembers()
        .filter((member) => member.typing && member.userId !== me().getUserId())
        .map((member) => member.name);
    if (names.length === 0) return null;
    return <span class="typing">{t(names.length === 1 ? "room.typing" : "room.typingMany", { names: names.join(", ") })}</span>;
}

/** The messages, oldest first, with the newest in sight until one scrolls away. */
function Timeline({ room, eventId }: { room: Room; eventId?: string }) {
    followRevision();
    const list = useRef<HTMLDivElement>(null);
    const atEnd = useRef(true);
    const loading = useSignal(false);
    const complete = useSignal(false);
    const events = shownEvents(room);

    useLayoutEffect(() => {
        if (atEnd.current && !eventId) list.current!.scrollTop = list.current!.scrollHeight;
    });
    useEffect(() => {
        if (eventId) document.getElementById(`event-${eventId}`)?.scrollIntoView({ block: "center" });
    }, [eventId, events.length > 0]);
    const newest = events.findLast((event) => !event.status);
    useEffect(() => {
        if (newest && document.hasFocus()) void me().sendReadReceipt(newest).catch(() => undefined);
    }, [newest?.getId()]);

    async function older(): Promise<void> {
        if (loading.value || complete.value) return;
        loading.value = true;
        const before = list.current!.scrollHeight - list.current!.scrollTop;
        try {
            await me().scrollback(room, 30);
            complete.value = !room.getLiveTimeline().getPaginationToken("b" as any);
        } finally {
            loading.value = false;
            requestAnimationFrame(() => (list.current!.scrollTop = list.current!.scrollHeight - before));
        }
    }

    function scrolled(): void {
        const el = list.current!;
        atEnd.current = el.scrollHeight - el.scrollTop - el.clientHeight < 40;
        if (el.scrollTop < 80) void older();
    }

    let lastDay = "";
    let lastSender: string | undefined;
    return (
        <div class="timeline" ref={list} onScroll={scrolled} role="log" aria-label={t("room.messages")} tabIndex={0}>
            {complete.value || !room.getLiveTimeline().getPaginationToken("b" as any) ? (
                <p class="hint centre">{t("room.start")}</p>
            ) : (
                <button class="link centre" disabled={loading.value} onClick={() => void older()}>
                    {t("room.loadOlder")}
                </button>
            )}
            {events.map((event) => {
                const today = day(event.getTs());
                const newDay = today !== lastDay;
                const first = newDay || lastSender !== event.getSender();
                lastDay = today;
                lastSender = event.isState() ? undefined : event.getSender();
                return (
                    <div key={event.getTxnId() ?? event.getId()} id={`event-${event.getId()}`}>
                        {newDay && <h2 class="day">{today}</h2>}
                        <Message event={event} first={first} mine={isMine(event)} next={nextUnplayed(events)} />
                    </div>
                );
            })}
        </div>
    );
}

/** What is played after a message: the next one in the room that was not heard yet. */
function nextUnplayed(events: MatrixEvent[]): (event: MatrixEvent) => MatrixEvent | undefined {
    return (event) => events.slice(events.indexOf(event) + 1).find((e) => voiceOf(e) && !played.isPlayed(e));
}

function Details({ room }: { room: Room }) {
    followRevision();
    const inviting = useSignal(false);
    const problem = useSignal("");
    async function leave(): Promise<void> {
        if (!confirm(t("room.leaveConfirm"))) return;
        await me().leave(room.roomId);
        go({ page: "none" });
    }
    async function invite(user: string): Promise<void> {
        try {
            problem.value = "";
            await me().invite(room.roomId, user);
        } catch (error: any) {
            problem.value = error.data?.error ?? error.message;
        }
    }
    useEffect(() => void room.loadMembersIfNeeded(), [room]);
    return (
        <section class="details" aria-label={t("room.info")}>
            <ul class="people">
                {room.getMembers().filter((m) => m.membership === "join" || m.membership === "invite").map((member) => (
                    <li key={member.userId}>
                        <Avatar name={member.name} id={member.userId} />
                        <span class="row-text">
                            <strong>{member.name}</strong>
                            <span>
                                {member.userId}
                                {member.membership === "invite" ? ` · ${t("room.invited", { name: "" }).trim()}` : ""}
                            </span>
                        </span>
                    </li>
                ))}
            </ul>
            {inviting.value && <PeoplePicker label={t("room.invite")} onPick={(user) => void invite(user)} />}
            {problem.value && (
                <p class="problem" role="alert">
                    {problem.value}
                </p>
            )}
            <div class="buttons">
                <button onClick={() => (inviting.value = !inviting.value)}>{t("room.invite")}</button>
                <button class="danger" onClick={() => void leave()}>
                    {t("room.leave")}
                </button>
            </div>
        </section>
    );
}
