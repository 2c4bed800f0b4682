import { signal } from "@preact/signals";
import type { ComponentType } from "preact";
import { Login } from "./components/Login";
import { Logo } from "./components/Logo";
import { t } from "./i18n";
import { signInWithToken, storedSession, tokenFromCompany, type Credentials } from "./matrix/account";
import { problem } from "./matrix/problem";

/** Who is signed in. */
const credentials = signal<Credentials | undefined>(storedSession());
/** The client proper. It is large, so the page to sign in does not wait for it. */
const app = signal<ComponentType | null>(null);
const trouble = signal("");
/** A login token in the address: another device has shown it as a code (#token=…), or the company account gave it. */
const code = new URLSearchParams(location.hash.slice(1)).get("token");
const token = code ?? tokenFromCompany();

async function open(): Promise<void> {
    trouble.value = "";
    try {
        const { App, start } = await import("./App");
        await start(credentials.value!);
        app.value = App;
    } catch (error) {
        console.error("open the session", error);
        trouble.value = problem(error);
    }
}

async function signInByCode(token: string): Promise<void> {
    history.replaceState(null, "", location.pathname); // nobody shall read it from the address again
    try {
        credentials.value = await signInWithToken(token);
        await open();
    } catch (error) {
        console.error("sign in by code", error);
        trouble.value = code ? t("login.codeFailed") : problem(error);
    }
}

if (token) void signInByCode(token);
else if (credentials.value) void open();
// Until somebody has typed a password there is time to fetch the rest.
else window.addEventListener("load", () => setTimeout(() => void import("./App").then(({ warmUp }) => warmUp()), 300));

/** What is shown first: the page to sign in, or the client once it is there. */
export function First() {
    const App = app.value;
    if (App) return <App />;
    if (!credentials.value && (!token || trouble.value)) {
        return (
            <Login
                problem={trouble.value}
                onSignedIn={(given) => {
                    credentials.value = given;
                    return open();
                }}
            />
        );
    }
    return (
        <main class="splash" aria-busy={!trouble.value}>
            <Logo />
            {trouble.value ? (
                <>
                    <p class="problem" role="alert">
                        {trouble.value}
                    </p>
                    <button class="primary" onClick={() => void open()}>
                        {t("app.retry")}
                    </button>
                </>
            ) : (
                <p role="status">{t("app.loading")}</p>
            )}
        </main>
    );
}
