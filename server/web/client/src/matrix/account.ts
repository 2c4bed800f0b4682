// Signing in. It uses nothing of matrix-js-sdk, so that the first page is there before that is.

export interface Credentials {
    userId: string;
    deviceId: string;
    accessToken: string;
}

const storageKey = "parley.session";

/** The homeserver is the one this page came from; the page's policy allows no other. */
export const homeserver = location.origin;

/** What the server refused, in the shape of the SDK's errors. */
class Refused extends Error {
    constructor(
        readonly httpStatus: number,
        readonly data: Record<string, any>,
        readonly httpHeaders: Headers,
    ) {
        super(data.error ?? `the server answered ${httpStatus}`);
    }
    get errcode(): string | undefined {
        return this.data.errcode;
    }
}

async function request(method: string, path: string, body?: unknown, token?: string): Promise<any> {
    const answer = await fetch(`${homeserver}/_matrix/client/v3${path}`, {
        method,
        headers: { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) },
        body: body === undefined ? undefined : JSON.stringify(body),
    });
    const data = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(answer.status, data, answer.headers);
    return data;
}

/** The session that is kept on this device, if there is one. */
export function storedSession(): Credentials | undefined {
    const stored = localStorage.getItem(storageKey);
    return stored ? (JSON.parse(stored) as Credentials) : undefined;
}

export function forgetSession(): void {
    localStorage.removeItem(storageKey);
}

function keep(answer: { user_id: string; device_id: string; access_token: string }): Credentials {
    const credentials = { userId: answer.user_id, deviceId: answer.device_id, accessToken: answer.access_token };
    localStorage.setItem(storageKey, JSON.stringify(credentials));
    return credentials;
}

function deviceName(): string {
    const system = /Android|iPhone|iPad|Windows|Mac|Linux/.exec(navigator.userAgent)?.[0] ?? "";
    const browser = /Firefox|Edg|Chrome|Safari/.exec(navigator.userAgent)?.[0]?.replace("Edg", "Edge") ?? "";
    return ["Parley", [browser, system].filter(Boolean).join(", ")].filter(Boolean).join(" · ");
}

/** Signs in with a password. */
export async function signInWithPassword(user: string, password: string): Promise<Credentials> {
    const body = { type: "m.login.password", identifier: { type: "m.id.user", user }, password };
    return keep(await request("POST", "/login", { ...body, initial_device_display_name: deviceName() }));
}

/** Signs in with a token that another device of the same person has got. Spec v1.19 client-server-api/#token-based-user-login */
export async function signInWithToken(token: string): Promise<Credentials> {
    return keep(await request("POST", "/login", { type: "m.login.token", token, initial_device_display_name: deviceName() }));
}

/** A way to sign in with an account that the company has elsewhere. */
export interface Company {
    /** What the server calls it; "" where there is only one. */
    name: string;
    /** Where one signs in. It leads back to this page, with a login token in the address. */
    href: string;
}

const ssoKey = "parley.sso";

/** How people come in here. */
export interface WaysIn {
    password: boolean;
    companies: Company[];
}

/** How this server lets people in. Spec v1.19 client-server-api/#get_matrixclientv3login */
export async function waysIn(): Promise<WaysIn> {
    const { flows } = await request("GET", "/login");
    const password = flows.some((flow: any) => flow.type === "m.login.password");
    const sso = flows.find((flow: any) => flow.type === "m.login.sso");
    if (!sso) return { password, companies: [] };
    const back = encodeURIComponent(location.origin + location.pathname);
    const providers: { id?: string; name?: string }[] = sso.identity_providers?.length ? sso.identity_providers : [{}];
    const companies = providers.map(({ id, name }) => ({
        name: name ?? "",
        href: `/_matrix/client/v3/login/sso/redirect${id ? `/${encodeURIComponent(id)}` : ""}?redirectUrl=${back}`,
    }));
    return { password, companies };
}

/** Remembers that the person leaves to sign in with the company account. */
export function leaveForCompany(): void {
    sessionStorage.setItem(ssoKey, "yes");
}

/** The login token with which the person comes back from there. One that nobody here has asked for would be somebody else's account. */
export function tokenFromCompany(): string | null {
    const token = new URLSearchParams(location.search).get("loginToken");
    const asked = sessionStorage.getItem(ssoKey) === "yes";
    sessionStorage.removeItem(ssoKey);
    return asked ? token : null;
}

/** Creates an account, with a registration token where the server asks for one, and gives it a name to be seen by. */
export async function register(username: string, name: string, password: string, token: string): Promise<Credentials> {
    const body: Record<string, unknown> = { username, password, initial_device_display_name: deviceName() };
    // The server names the steps; each answer completes one of them.
    for (let step = 0; ; step++) {
        try {
            const credentials = keep(await request("POST", "/register", body));
            const path = `/profile/${encodeURIComponent(credentials.userId)}/displayname`;
            if (name) await request("PUT", path, { displayname: name }, credentials.accessToken).catch((error) => console.warn("the name was not set", error));
            return credentials;
        } catch (error) {
            if (!(error instanceof Refused)) throw error;
            const stages: string[] | undefined = error.data.flows?.[0]?.stages;
            if (error.httpStatus !== 401 || !stages || step >= 4) throw error;
            if (error.data.errcode) throw error; // the last answer was refused
            const done: string[] = error.data.completed ?? [];
            const type = stages.find((stage) => !done.includes(stage)) ?? stages[0];
            body.auth = { type, session: error.data.session, ...(type === "m.login.registration_token" ? { token } : {}) };
        }
    }
}
