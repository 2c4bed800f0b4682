import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { t } from "../i18n";
import { composing } from "../matrix/composing";
import { shortName } from "../matrix/messages";
import { me, followRevision } from "../matrix/session";
import { href } from "../route";
import { Avatar } from "./Avatar";
import { Composer } from "./Composer";
import { Details } from "./Details";
import { Icon } from "./Icon";
import { Invitation } from "./Invitation";
import { PageHeader } from "./PageHeader";
import { Timeline } from "./Timeline";

/** One conversation. */
export function RoomView({ roomId, eventId }: { roomId: string; eventId?: string }) {
    followRevision();
    const room = me().getRoom(roomId);
    const details = useSignal(false);
    useEffect(() => () => void (composing.value = null), [roomId]);
    if (room?.getMyMembership() === "invite") {
        return (
            <>
                <PageHeader title={t("rooms.invites")} />
                <div class="scroll">
                    <Invitation room={room} />
                </div>
            </>
        );
    }
    if (!room || room.getMyMembership() !== "join") {
        return (
            <>
                <PageHeader title={t("rooms.title")} />
                <div class="empty">
                    <p>{t("room.gone")}</p>
                    <a class="button" href={href({ page: "none" })}>
                        {t("app.back")}
                    </a>
                </div>
            </>
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
                    <h1 dir="auto" title={room.name}>
                        {room.name}
                    </h1>
                    <p>
                        {room.hasEncryptionStateEvent() && (
                            <span class="encrypted" title={t("room.encrypted")}>
                                <Icon name="lock" />
                                <span class="visually-hidden">{t("room.encrypted")}</span>
                            </span>
                        )}
                        <Status room={room} />
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

/** Who is typing, or else how many people there are. */
function Status({ room }: { room: Room }) {
    followRevision();
    const typing = room
        .getMembers()
        .filter((member) => member.typing && member.userId !== me().getUserId())
        .map((member) => shortName(member.name));
    if (typing.length > 0) return <span class="typing">{t(typing.length === 1 ? "room.typing" : "room.typingMany", { names: typing.join(", ") })}</span>;
    const invited = room.getInvitedMemberCount();
    if (room.getJoinedMemberCount() === 1 && invited > 0) return <>{t("room.waitingForOther")}</>;
    return <>{t(room.getJoinedMemberCount() === 1 ? "room.member" : "room.members", { count: room.getJoinedMemberCount() })}</>;
}
