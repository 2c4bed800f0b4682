import { useEffect } from "preact/hooks";
import type { MatrixEvent } from "matrix-js-sdk";
import { day, t, time } from "../i18n";
import { senderName, voiceOf } from "../matrix/messages";
import { me } from "../matrix/session";
import { href } from "../route";
import { played } from "../voice/played";
import { player } from "../voice/player";
import { Avatar } from "./Avatar";
import { Icon } from "./Icon";
import { PageHeader } from "./PageHeader";
import { VoiceMessage } from "./VoiceMessage";

/** All voice messages one has not heard yet, over all conversations, oldest first. */
export function Inbox() {
    useEffect(() => void played.refreshInbox(), []);
    const { events, total } = played.inbox.value;
    const next = (event: MatrixEvent): MatrixEvent | undefined => {
        const all = played.inbox.value.events;
        const at = all.findIndex((e) => e.getId() === event.getId());
        return all.slice(at + 1).find((e) => !played.isPlayed(e));
    };
    return (
        <>
            <PageHeader title={t("inbox.title")} />
            <div class="scroll">
                {total === 0 && (
                    <div class="empty">
                        <Icon name="check" />
                        <p>{t("inbox.empty")}</p>
                    </div>
                )}
                {total > 0 && (
                    <p class="centre">
                        <button class="primary" onClick={() => events[0] && void player.play(events[0], next)}>
                            {t("inbox.playAll")}
                        </button>
                    </p>
                )}
                <ul class="cards">
                    {events.map((event) => {
                        const voice = voiceOf(event);
                        const room = me().getRoom(event.getRoomId());
                        if (!voice) return null;
                        return (
                            <li key={event.getId()}>
                                <header>
                                    <Avatar name={senderName(event)} id={event.getSender() ?? ""} />
                                    <span class="row-text">
                                        <strong>{senderName(event)}</strong>
                                        <a href={href({ page: "room", room: event.getRoomId()!, event: event.getId() })}>{room?.name ?? event.getRoomId()}</a>
                                    </span>
                                    <time>
                                        {day(event.getTs())} {time(event.getTs())}
                                    </time>
                                </header>
                                <VoiceMessage voice={voice} next={next} />
                            </li>
                        );
                    })}
                </ul>
            </div>
        </>
    );
}
