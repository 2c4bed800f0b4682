package api

import (
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// deviceRoutes are the list of one's devices. Spec v1.19 client-server-api/#device-management
func (a *api) deviceRoutes() []route {
	return []route{
		{method: get, path: client + "/devices", handle: a.devices, suspended: true},
		{method: get, path: client + "/devices/{deviceId}", handle: a.device, suspended: true},
		{method: put, path: client + "/devices/{deviceId}", handle: a.renameDevice, limit: limitAccount, suspended: true},
		{method: del, path: client + "/devices/{deviceId}", handle: a.deleteDevice, limit: limitAccount, suspended: true},
		{method: post, path: client + "/delete_devices", handle: a.deleteDevices, limit: limitAccount, suspended: true},
	}
}

// maxDeviceNameBytes limits the name of a device, as Synapse does.
const maxDeviceNameBytes = 255

func (a *api) devices(c *call) error {
	devices, err := a.Users.Devices(c.ctx(), c.userID())
	return c.answer(map[string][]user.Device{"devices": devices}, err)
}

func (a *api) device(c *call) error {
	return c.answer(a.Users.Device(c.ctx(), c.userID(), matrix.DeviceID(c.Param("deviceId"))))
}

func (a *api) renameDevice(c *call) error {
	var r struct {
		DisplayName *string `json:"display_name"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	device := matrix.DeviceID(c.Param("deviceId"))
	if r.DisplayName == nil {
		// Nothing to change, but an unknown device is still an error.
		if _, err := a.Users.Device(c.ctx(), c.userID(), device); err != nil {
			return err
		}
		return c.done()
	}
	if len(*r.DisplayName) > maxDeviceNameBytes {
		return matrix.InvalidParam("the name of a device may have %d bytes", maxDeviceNameBytes)
	}
	if err := a.Users.RenameDevice(c.ctx(), c.userID(), device, *r.DisplayName); err != nil {
		return err
	}
	return c.done()
}

func (a *api) deleteDevice(c *call) error {
	body, err := c.optionalObject()
	if err != nil {
		return err
	}
	device := matrix.DeviceID(c.Param("deviceId"))
	if ok, err := c.reauthenticate("delete device "+string(device), body); !ok {
		return err
	}
	if err := a.Users.DeleteDevices(c.ctx(), c.userID(), []matrix.DeviceID{device}); err != nil {
		return err
	}
	return c.done()
}

func (a *api) deleteDevices(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	var r struct {
		Devices []matrix.DeviceID `json:"devices"`
	}
	if err := decodeJSON(body, &r); err != nil {
		return err
	}
	if r.Devices == nil {
		return matrix.MissingParam("devices is missing")
	}
	if ok, err := c.reauthenticate("delete devices", body); !ok {
		return err
	}
	if err := a.Users.DeleteDevices(c.ctx(), c.userID(), r.Devices); err != nil {
		return err
	}
	return c.done()
}
