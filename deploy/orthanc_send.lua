-- Orthanc: sends a study that has a structure set to the listener once it is stable.
-- In orthanc.json: "LuaScripts": ["/etc/orthanc/orthanc_send.lua"], "StableAge": 60 and
-- "DicomModalities": {"vmat": ["VMATDIFFUSION", "127.0.0.1", 11112]}.

function OnStableStudy(studyId, tags, metadata)
  local series = ParseJson(RestApiGet('/studies/' .. studyId .. '/series'))
  local hasStructures, hasPlan = false, false
  for _, one in ipairs(series) do
    local modality = one['MainDicomTags']['Modality']
    hasStructures = hasStructures or modality == 'RTSTRUCT'
    hasPlan = hasPlan or one['MainDicomTags']['Manufacturer'] == 'VMAT Diffusion'
  end
  -- Results that came back make the study stable again: they are not sent round.
  if hasStructures and not hasPlan then
    SendToModality(studyId, 'vmat')
  end
end
