import type { AuthDict } from "matrix-js-sdk";
import { askPassword, confirmElsewhere } from "../components/Questions";
import { t } from "../i18n";
import { me } from "./session";

/**
 * Makes a request that the server wants confirmed, asking for the password until it is right, or sending the person to the company's
 * sign-in where there is none. Gives undefined if the person gives up.
 * Spec v1.19 client-server-api/#user-interactive-authentication-api
 */
export async function sensitive<T>(why: string, request: (auth: AuthDict | null) => Promise<T>): Promise<T | undefined> {
    for (let auth: AuthDict | null = null; ; ) {
        try {
            return await request(auth);
        } catch (error: any) {
            const flows: { stages: string[] }[] | undefined = error.data?.flows;
            if (error.httpStatus !== 401 || !flows) throw error;
            const has = (stage: string): boolean => flows.some((flow) => flow.stages.length === 1 && flow.stages[0] === stage);
            const { session } = error.data;
            if (!has("m.login.password") && has("m.login.sso")) {
                const page = `/_matrix/client/v3/auth/m.login.sso/fallback/web?session=${encodeURIComponent(session)}`;
                if (!(await confirmElsewhere(why, page, auth !== null))) return undefined;
                auth = { session } as AuthDict;
                continue;
            }
            if (!has("m.login.password")) throw new Error(t("password.impossible"));
            const password = await askPassword(why, auth !== null);
            if (password === null) return undefined;
            const identifier = { type: "m.id.user", user: me().getUserId() };
            auth = { type: "m.login.password", identifier, password, session } as AuthDict;
        }
    }
}
