import { useEffect } from "preact/hooks";
import { Inbox } from "./components/Inbox";
import { Login } from "./components/Login";
import { NewConversation } from "./components/NewConversation";
import { RoomView } from "./components/RoomView";
import { Search } from "./components/Search";
import { Settings } from "./components/Settings";
import { Sidebar } from "./components/Sidebar";
import { VerificationRequests } from "./components/Verification";
import { t } from "./i18n";
import { client, online, phase } from "./matrix/session";
import { watchNotifications } from "./notifications";
import { route } from "./route";
import { played } from "./voice/played";

export function App() {
    useEffect(() => {
        if (phase.value !== "ready" || !client.value) return;
        played.watch(client.value);
        void played.refreshInbox();
        return watchNotifications(client.value);
    }, [phase.value]);
    if (phase.value === "loading") {
        return (
            <main class="splash" aria-busy="true">
                <Logo />
                <p role="status">{t("app.loading")}</p>
            </main>
        );
    }
    if (phase.value === "signedOut") return <Login />;
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

export function Logo() {
    return (
        <svg class="logo" viewBox="0 0 48 48" aria-hidden="true">
            <path d="M8 20v8M16 12v24M24 6v36M32 14v20M40 20v8" stroke="currentColor" stroke-width="4" stroke-linecap="round" />
        </svg>
    );
}
