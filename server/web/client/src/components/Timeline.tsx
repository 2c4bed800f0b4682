import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { MatrixEvent, Room } from "matrix-js-sdk";
import { day, dayNumber, t } from "../i18n";
import { isMine, shownEvents, shortName, voiceOf } from "../matrix/messages";
import { outbox } from "../matrix/outbox";
import { followRevision, me } from "../matrix/session";
import { played } from "../voice/played";
import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { Message } from "./Message";
import { OutgoingMessage } from "./OutgoingMessage";

/** So many messages come and go together when one scrolls. */
const chunkSize = 20;
/** How far from sight messages are kept, in pixels. */
const margin = 1500;
/** How many earlier messages are looked through for the one that a link leads to. */
const farthest = 2000;

/** A message, and what its neighbours make of it. */
interface Shown {
    event: MatrixEvent;
    /** Set where a day begins. */
    day: string | undefined;
    first: boolean;
    unreadFrom: boolean;
    readBy: string[];
}

interface Chunk {
    key: number;
    shown: Shown[];
}

/** The messages, oldest first, with the newest in sight until one scrolls away. */
export function Timeline({ room, eventId }: { room: Room; eventId?: string }) {
    followRevision();
    const list = useRef<HTMLDivElement>(null);
    const atEnd = useRef(true);
    const away = useSignal(false);
    const loading = useSignal(false);
    const missing = useSignal(false);
    /** A message whose place on the screen is kept while earlier ones come in above it. */
    const held = useRef<{ id: string; top: number } | null>(null);
    const anchor = useRef<string | undefined>(undefined);
    /** Where the person had read to when the room was opened. */
    const readUpTo = useRef(room.getEventReadUpTo(me().getUserId()!));
    const events = shownEvents(room);
    const outgoing = outbox.in(room.roomId);
    const more = !!room.getLiveTimeline().getPaginationToken("b" as any);

    useLayoutEffect(() => {
        const el = list.current!;
        if (held.current) {
            const kept = document.getElementById(held.current.id);
            if (kept) el.scrollTop += kept.getBoundingClientRect().top - held.current.top;
        } else if (atEnd.current) el.scrollTop = el.scrollHeight;
    });
    useEffect(() => {
        // The room for messages changes with what is below it, and messages grow when pictures or texts arrive.
        const follow = new ResizeObserver(() => {
            if (atEnd.current && !held.current) list.current!.scrollTop = list.current!.scrollHeight;
        });
        follow.observe(list.current!);
        follow.observe(list.current!.firstElementChild!);
        return () => follow.disconnect();
    }, []);
    useEffect(() => {
        if (list.current!.scrollHeight <= list.current!.clientHeight) void older();
    }, [events.length]);

    const own = events.findLast((event) => event.status === "sending")?.getId();
    useEffect(() => {
        if (own || outgoing.length > 0) toEnd(); // whoever says something wants to see it
    }, [own, outgoing.length]);

    const newest = events.findLast((event) => !event.status);
    useEffect(() => {
        const read = (): void => {
            if (newest && document.hasFocus()) void me().sendReadReceipt(newest).catch(() => undefined);
        };
        read();
        window.addEventListener("focus", read);
        return () => window.removeEventListener("focus", read);
    }, [newest?.getId()]);

    useEffect(() => void played.loadBy(room.roomId).catch((error) => console.warn("who has played what", error)), []);

    useEffect(() => {
        if (!eventId) return;
        let given = true;
        void (async () => {
            atEnd.current = false;
            missing.value = false;
            while (given && !room.findEventById(eventId)) {
                const count = room.getLiveTimeline().getEvents().length;
                if (!(await older(100)) || count > farthest) {
                    missing.value = true;
                    return;
                }
            }
            if (given) requestAnimationFrame(() => show(eventId));
        })();
        return () => void (given = false);
    }, [eventId]);

    /** Brings one message into sight. */
    function show(id: string): void {
        const at = list.current?.querySelector(`[data-events~="${CSS.escape(id)}"]`);
        at?.scrollIntoView({ block: "center" });
        // What was far from sight comes back a few frames later, or more on a slow machine.
        const end = performance.now() + 5000;
        const find = (): void => {
            const target = document.getElementById(`event-${id}`);
            if (!target && at?.isConnected && performance.now() < end) requestAnimationFrame(find);
            target?.scrollIntoView({ block: "center" });
            target?.querySelector("article")?.focus({ preventScroll: true });
            target?.classList.add("found");
        };
        requestAnimationFrame(find);
    }

    /** Fetches earlier messages; false if there are none. */
    async function older(count = 40): Promise<boolean> {
        if (loading.value) return true;
        if (!room.getLiveTimeline().getPaginationToken("b" as any)) return false;
        loading.value = true;
        try {
            const top = [...list.current!.querySelectorAll<HTMLElement>(".entry")].find((el) => el.getBoundingClientRect().bottom > list.current!.getBoundingClientRect().top);
            if (top && !atEnd.current) held.current = { id: top.id, top: top.getBoundingClientRect().top };
            const follow = (): void => {
                const kept = held.current && document.getElementById(held.current.id);
                if (kept) held.current!.top = kept.getBoundingClientRect().top;
            };
            list.current!.addEventListener("scroll", follow, { passive: true });
            await me().scrollback(room, count);
            list.current?.removeEventListener("scroll", follow);
            await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
            return true;
        } catch (error) {
            console.warn("earlier messages", error);
            return false;
        } finally {
            held.current = null;
            loading.value = false;
        }
    }

    function scrolled(): void {
        const el = list.current!;
        atEnd.current = el.scrollHeight - el.scrollTop - el.clientHeight < 40;
        away.value = el.scrollHeight - el.scrollTop - el.clientHeight > el.clientHeight;
        if (el.scrollTop < 800) void older();
    }

    function toEnd(): void {
        atEnd.current = true;
        list.current!.scrollTop = list.current!.scrollHeight;
    }

    /** The arrow keys go from message to message. */
    function step(e: KeyboardEvent): void {
        if (e.key !== "ArrowUp" && e.key !== "ArrowDown") return;
        if (e.target instanceof HTMLInputElement || (e.target as Element).closest("dialog")) return;
        const all = [...list.current!.querySelectorAll<HTMLElement>("article")];
        const at = all.findIndex((el) => el.contains(document.activeElement));
        const to = at < 0 ? all.length - 1 : at + (e.key === "ArrowUp" ? -1 : 1);
        if (!all[to]) return;
        e.preventDefault();
        all[to].focus();
    }

    return (
        <div class="timeline-frame">
            <div class="timeline" ref={list} onScroll={scrolled} onKeyDown={step} role="log" aria-label={t("room.messages")} tabIndex={0}>
                <div class="timeline-content">
                    {more ? (
                        <button class="link centre" disabled={loading.value} onClick={() => void older()}>
                            {loading.value ? t("app.loading") : t("room.loadOlder")}
                        </button>
                    ) : (
                        <p class="hint centre">{t("room.start")}</p>
                    )}
                    {missing.value && (
                        <p class="problem centre" role="alert">
                            {t("room.notFound")}
                        </p>
                    )}
                    {chunks(describe(room, events, readUpTo.current), anchor).map((chunk) => (
                        <Messages key={chunk.key} chunk={chunk} events={events} root={list} />
                    ))}
                    {!more && outgoing.length === 0 && events.every((event) => event.isState()) && <p class="empty">{t("room.empty")}</p>}
                    {outgoing.map((item) => (
                        <OutgoingMessage key={item.id} item={item} />
                    ))}
                </div>
            </div>
            {away.value && (
                <button class="round accent to-end" aria-label={t("room.toEnd")} title={t("room.toEnd")} onClick={toEnd}>
                    <Icon name="down" />
                </button>
            )}
        </div>
    );
}

/** Says of each message what depends on the others. */
function describe(room: Room, events: MatrixEvent[], readUpTo: string | null): Shown[] {
    const readers = readersOf(room, events);
    let lastDay = 0;
    let lastSender: string | undefined;
    let unread: "before" | "next" | "after" = readUpTo && events.some((e) => e.getId() === readUpTo) ? "before" : "after";
    return events.map((event) => {
        const number = dayNumber(event.getTs());
        const newDay = number !== lastDay;
        const unreadFrom = unread === "next" && !isMine(event) && !event.isState();
        if (unreadFrom || (unread === "next" && isMine(event))) unread = "after";
        if (unread === "before" && event.getId() === readUpTo) unread = "next";
        const first = newDay || unreadFrom || lastSender !== event.getSender();
        lastDay = number;
        lastSender = event.isState() ? undefined : event.getSender();
        return { event, day: newDay ? day(event.getTs()) : undefined, first, unreadFrom, readBy: event.isState() ? [] : (readers.get(event) ?? []) };
    });
}

/** Who has read up to which message; in large rooms nobody is named. */
function readersOf(room: Room, events: MatrixEvent[]): Map<MatrixEvent, string[]> {
    const readers = new Map<MatrixEvent, string[]>();
    const members = room.getJoinedMembers();
    if (members.length > 30) return readers;
    const all = room.getLiveTimeline().getEvents();
    for (const member of members) {
        const id = member.userId !== me().getUserId() && room.getEventReadUpTo(member.userId);
        if (!id) continue;
        let at = events.findLastIndex((event) => event.getId() === id);
        if (at < 0) {
            // A receipt may be for an event that is not shown, such as a reaction: what is before it was read.
            const raw = all.findLastIndex((event) => event.getId() === id);
            for (let i = raw; i >= 0 && at < 0; i--) at = events.lastIndexOf(all[i]);
        }
        if (at < 0) continue;
        readers.set(events[at], [...(readers.get(events[at]) ?? []), shortName(member.name)]);
    }
    return readers;
}

/** Groups messages so that a group keeps its members while others come before and after them. */
function chunks(shown: Shown[], anchor: { current: string | undefined }): Chunk[] {
    let at = shown.findIndex(({ event }) => event.getId() === anchor.current);
    if (at < 0) {
        at = 0;
        anchor.current = shown.find(({ event }) => !event.status)?.event.getId();
    }
    const all: Chunk[] = [];
    shown.forEach((one, i) => {
        const key = Math.floor((i - at) / chunkSize);
        if (all.at(-1)?.key === key) all.at(-1)!.shown.push(one);
        else all.push({ key, shown: [one] });
    });
    return all;
}

/** A group of messages; only its height is kept while it is far from sight. */
function Messages({ chunk, events, root }: { chunk: Chunk; events: MatrixEvent[]; root: { current: HTMLElement | null } }) {
    const element = useRef<HTMLDivElement>(null);
    const near = useSignal(true);
    const height = useRef(0);
    useEffect(() => {
        const watch = new IntersectionObserver(
            ([entry]) => {
                if (!entry.isIntersecting && near.value) height.current = element.current!.offsetHeight;
                near.value = entry.isIntersecting;
            },
            { root: root.current, rootMargin: `${margin}px 0px` },
        );
        watch.observe(element.current!);
        return () => watch.disconnect();
    }, []);
    const ids = chunk.shown.map(({ event }) => event.getId()).join(" ");
    if (!near.value) return <div ref={element} data-events={ids} style={{ height: `${height.current}px` }} />;
    return (
        <div ref={element} data-events={ids}>
            {chunk.shown.map(({ event, day, first, unreadFrom, readBy }) => (
                <div class="entry" key={event.getTxnId() ?? event.getId()} id={`event-${event.getId()}`}>
                    {day && <h2 class="day">{day}</h2>}
                    {unreadFrom && <p class="unread-line">{t("room.unreadFrom")}</p>}
                    <Message event={event} first={first} mine={isMine(event)} next={nextUnplayed(events)} />
                    {readBy.length > 0 && (
                        <p class="read-by">
                            <span class="visually-hidden">{t("room.readBy", { names: readBy.join(", ") })}</span>
                            {readBy.slice(0, 5).map((name) => (
                                <span title={t("room.readBy", { names: name })} key={name}>
                                    <Avatar name={name} id={name} tiny />
                                </span>
                            ))}
                        </p>
                    )}
                </div>
            ))}
        </div>
    );
}

/** What is played after a message: the next one in the room that was not heard yet. */
function nextUnplayed(events: MatrixEvent[]): (event: MatrixEvent) => MatrixEvent | undefined {
    return (event) => events.slice(events.indexOf(event) + 1).find((e) => voiceOf(e) && !played.isPlayed(e));
}
