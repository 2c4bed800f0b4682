import { useEffect } from "preact/hooks";
import { Inbox } from "./components/Inbox";
import { Logo } from "./components/Logo";
import { NewConversation } from "./components/NewConversation";
import { Questions } from "./components/Questions";
import { RoomView } from "./components/RoomView";
import { Search } from "./components/Search";
import { Settings } from "./components/Settings";
import { Sidebar } from "./components/Sidebar";
import { VerificationRequests } from "./components/Verification";
import { t } from "./i18n";
import { outbox } from "./matrix/outbox";
import { me, online } from "./matrix/session";
import { watchNotifications } from "./notifications";
import { route } from "./route";
import { watchLive } from "./voice/live";
import { played } from "./voice/played";
import { player } from "./voice/player";
import { transcripts } from "./voice/transcripts";

export { start, warmUp } from "./matrix/session";

/** The client of somebody who is signed in. */
export function App() {
    useEffect(() => {
        const matrix = me();
        played.watch(matrix);
        transcripts.watch(matrix);
        void played.refreshInbox();
        player.watch(matrix);
        void watchLive(matrix);
        void outbox.watch();
        return watchNotifications(matrix);
    }, []);
    const unheard = played.inbox.value.total;
    useEffect(() => void (document.title = unheard ? `(${unheard}) Parley` : "Parley"), [unheard]);
    return (
        <div class={`shell ${route.value.page === "none" ? "shell-list" : "shell-page"}`}>
            {!online.value && (
                <p class="offline" role="status">
                    {t("app.offline")}
                </p>
            )}
            <Sidebar />
            <main class="page">
                <Page />
            </main>
            <VerificationRequests />
            <Questions />
        </div>
    );
}

function Page() {
    const r = route.value;
    switch (r.page) {
        case "room":
            return <RoomView key={r.room} roomId={r.room} eventId={r.event} />;
        case "inbox":
            return <Inbox />;
        case "search":
            return <Search />;
        case "settings":
            return <Settings />;
        case "new":
            return <NewConversation />;
        case "none":
            return (
                <div class="empty">
                    <Logo />
                    <p>{t("rooms.select")}</p>
                </div>
            );
    }
}
